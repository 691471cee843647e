"""What a pack holds, described as an RO-Crate: outputs, code, the workflow, and which run of which node made what.

Profiles: RO-Crate 1.1, Workflow RO-Crate 1.0, Process Run Crate and Workflow Run Crate 0.5.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from rocrate.model.computerlanguage import ComputerLanguage
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from larpo.audit.open import AuditedRun
from larpo.audit.pack import BUNDLE, README, Facts
from larpo.audit.record import Manifest
from larpo.graph import read_stages
from larpo.workspace.dvc import kind_of
from larpo.workspace.dvc_lock import MANIFEST, Entry, LockedNode

VERSION = "1.1"
WORKFLOW = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    WORKFLOW: ("Workflow RO-Crate", "1.0"),
}
# Names for md5 and sha256.
TERMS = "https://w3id.org/ro/terms/workflow-run/context"
FORMATS = {
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".csv": "text/csv",
    ".html": "text/html",
    ".yaml": "application/yaml",
    ".lock": "application/yaml",
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".bundle": "application/x-git",
    ".safetensors": "application/octet-stream",
}
GRAPH = "run/dvc.yaml"


def describe(run: AuditedRun, pack: Facts, members: Mapping[str, tuple[int, str]]) -> bytes:
    """ro-crate-metadata.json.

    Parameters
    ----------
    members
        Name in the pack → (size in bytes, sha256) of every file, this one and the checksums aside.
    """
    description = Description(run, pack, members)
    description.fill()
    text = json.dumps(description.crate.metadata.generate(), indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


class Description:
    """The crate in the making."""

    def __init__(self, run: AuditedRun, pack: Facts, members: Mapping[str, tuple[int, str]]):
        self.run, self.pack, self.members = run, pack, members
        self.crate = ROCrate(version=VERSION)
        self.left_out = {left.path for left in pack.left_out}
        self.kinds = {kind: body.get("do", body).get("desc", "") for kind, body in read_stages().items()}

    def fill(self) -> None:
        crate, root = self.crate, self.crate.root_dataset
        crate.metadata.extra_contexts.append(TERMS)
        crate.metadata["conformsTo"] = [{"@id": url} for url in (crate.metadata.profile, WORKFLOW)]
        crate.name = str(getattr(self.run.params.report, "title", None) or "LARPO run")
        crate.description = (
            f"A run of LARPO at commit {self.pack.commit[:12]}: {len(self.run.nodes)} nodes with their outputs, "
            "code, parameters and records, packed by `larpo pack` to be checked by `larpo audit`."
        )
        times = [pair for node in self.run.nodes if (pair := _times(self.run.recorded(node.name)))]
        # Not the clock's: the same run makes the same pack.
        root["datePublished"] = max(end for _, end in times) if times else "1970-01-01"
        root["conformsTo"] = [
            crate.add(ContextEntity(crate, url, {"@type": "CreativeWork", "name": name, "version": version}))
            for url, (name, version) in PROFILES.items()
        ]
        root["license"] = self.licence()
        self.files = {name: self.file(name) for name in self.members if name != GRAPH and not self.made(name)}
        crate.mainEntity = self.workflow()
        self.files[README]["about"] = root
        code = self.files[BUNDLE]
        code["name"], code["version"] = "the code and its history as a Git bundle", self.pack.commit
        code["description"] = f"git clone -b run {BUNDLE}; commit {self.pack.commit}"
        self.outputs = {
            path: self.output(node, path, entry) for node in self.run.nodes for path, entry in node.outs.items()
        }
        self.sources: dict[str, Any] = {}
        actions = [self.action(node) for node in self.run.nodes]
        report = [output for path, output in self.outputs.items() if path.startswith("report/")]
        whole = {
            "@type": "CreateAction",
            "name": "the run",
            "description": "dvc repro",
            "instrument": crate.mainEntity,
            "object": [self.files[name] for name in ("run/params.yaml",) if name in self.files]
            + list(self.sources.values()),
            "result": report or list(self.outputs.values()),
        }
        if times:
            whole |= {"startTime": min(start for start, _ in times), "endTime": max(end for _, end in times)}
        root["mentions"] = [self.entity("#run", whole), *actions]

    def entity(self, identifier: str, properties: dict[str, Any]) -> ContextEntity:
        """An entity whose properties may be other entities."""
        made = self.crate.add(ContextEntity(self.crate, identifier, {"@type": properties.pop("@type")}))
        for name, value in properties.items():
            made[name] = _plain(value)
        return made

    def file(self, name: str) -> Any:
        size, sha256 = self.members[name]
        facts = {"name": name, "contentSize": str(size), "sha256": sha256}
        facts["encodingFormat"] = FORMATS.get(PurePosixPath(name).suffix, "application/octet-stream")
        return self.crate.add_file(dest_path=name, properties=facts)

    def workflow(self) -> Any:
        language = {"name": "DVC pipeline", "url": {"@id": "https://dvc.org/"}, "alternateName": "dvc.yaml"}
        self.crate.add(dvc := ComputerLanguage(self.crate, identifier="https://dvc.org/", properties=language))
        size, sha256 = self.members[GRAPH]
        facts = {"name": "the graph of LARPO", "version": self.pack.commit}
        facts |= {"contentSize": str(size), "sha256": sha256, "encodingFormat": FORMATS[".yaml"]}
        return self.crate.add_workflow(dest_path=GRAPH, properties=facts, lang=dvc)

    def made(self, name: str) -> bool:
        """Whether a member is an output, or lies in one: those are described as outputs."""
        path = PurePosixPath(name.removeprefix("run/"))
        return name.startswith("run/") and any(str(p) in self.run.producer for p in (path, *path.parents))

    def output(self, node: LockedNode, path: str, entry: Entry) -> Any:
        what = self.kinds.get(kind_of(node.name), "").rstrip(".") or "an output"
        if path == node.manifest:
            what = "the node's record of itself"
        facts: dict[str, Any] = {"name": path, "description": f"{node.name}: {what}"}
        facts["md5"] = entry.md5.removesuffix(".dir")
        folder = entry.md5.endswith(".dir")
        if path in self.left_out:
            facts |= {"@type": "Dataset" if folder else "CreativeWork", "contentSize": str(entry.size)}
            facts["description"] += "; left out of this pack"
            return self.entity(f"#{path}", facts)
        if folder:
            facts["description"] += f"; {entry.files} files, md5 as DVC makes it of their names and md5s"
            made = self.crate.add_dataset(dest_path=f"run/{path}/", properties=facts)
            inside = [name for name in self.members if name.startswith(f"run/{path}/")]
            made["hasPart"] = _plain([self.file(name) for name in inside])
            made["contentSize"] = str(sum(self.members[name][0] for name in inside))
            return made
        made = self.file(f"run/{path}")
        for name, value in facts.items():
            made[name] = value
        return made

    def given(self, manifest: Manifest) -> list[Any]:
        """Models and datasets from outside that a node read."""
        entities = []
        for source in manifest.notes.sources:
            identifier = f"#source/{source.kind}/{source.name}/{source.version}".replace(" ", "-")
            if identifier not in self.sources:
                facts = {"@type": "CreativeWork", "name": source.name, "description": source.kind}
                more = {"version": source.version, "identifier": source.hash, "license": source.licence}
                facts |= {key: value for key, value in more.items() if value}
                self.sources[identifier] = self.entity(identifier, facts)
            entities.append(self.sources[identifier])
        return entities

    def action(self, node: LockedNode) -> ContextEntity:
        """The execution of one node: command, what it read, what it made, when, with which parameters."""
        manifest = self.run.recorded(node.name)
        module = node.cmd.split()[2] if node.cmd.startswith("python -m ") else node.cmd
        code = manifest.git.commit or self.pack.commit
        tool = f"#{module}@{code[:12]}"
        if self.crate.get(tool) is None:
            facts = {"@type": "SoftwareApplication", "name": module, "softwareVersion": code}
            self.entity(tool, facts | {"description": f"a module of {BUNDLE}"})
        read = [self.outputs[path] for path in node.deps if path in self.outputs]
        for path in node.deps:  # whole folders of outputs, which the report reads
            if path not in self.outputs and path not in self.run.sources:
                inside = [p for p in self.outputs if p.startswith(f"{path}/") and not p.endswith(MANIFEST)]
                read += [self.outputs[p] for p in inside]
        read += [self.outputs[out] for path in node.deps if (out := self.run.around(path)) is not None]
        read += [self.files[f"run/{path}"] for path in node.deps if f"run/{path}" in self.files]
        settings = [
            self.entity(
                f"#{node.name}/{key}",
                {"@type": "PropertyValue", "name": key, "value": json.dumps(value, sort_keys=True, ensure_ascii=False)},
            )
            for key, value in manifest.params.items()
        ]
        facts = {
            "@type": "CreateAction",
            "name": node.name,
            "description": node.cmd,
            "instrument": self.crate.get(tool),
            "object": [*read, *self.given(manifest), *settings],
            "result": [self.outputs[path] for path in node.outs],
        }
        if times := _times(manifest):
            facts |= dict(zip(("startTime", "endTime"), times, strict=True))
        return self.entity(f"#{node.name}", facts)

    def licence(self) -> Any:
        """The repository's licence file, by name; a line that none is stated where there is none."""
        facts = {"@type": "CreativeWork", "name": self.run.licence or "no licence is stated"}
        if self.run.licence:
            facts["description"] = f"a file of {BUNDLE}"
        return self.entity("#licence", facts)


def _plain(value: Any) -> Any:
    """A list of one as its element, as RO-Crate wants it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _times(manifest: Manifest) -> tuple[str, str] | None:
    """When a node began and ended."""
    try:
        start = datetime.fromisoformat(manifest.started or "").astimezone(UTC)
        end = start + timedelta(seconds=manifest.seconds)
    except (ValueError, OverflowError):
        return None
    return start.isoformat(timespec="seconds"), end.isoformat(timespec="seconds")
