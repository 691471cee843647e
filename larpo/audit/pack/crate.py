"""What a pack holds, described as an RO-Crate: outputs, code, the workflow, and which run of which node made what.

Profiles: RO-Crate 1.1, Workflow RO-Crate 1.0, Process Run Crate and Workflow Run Crate 0.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from rocrate.model.computerlanguage import ComputerLanguage
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from larpo.audit.diff.changes import manifest_of
from larpo.audit.open import AuditedRun
from larpo.workspace.dvc_lock import Entry, LockedNode

METADATA = "ro-crate-metadata.json"
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
MADE = {
    "policy": "the policy the run starts from",
    "sft": "a policy after supervised fine-tuning",
    "prompts": "prompts of an iteration",
    "sample": "responses that the policy sampled",
    "reward": "the reward model, or a line that says there is none",
    "score": "rewards of the responses",
    "candidates": "all scored responses up to this iteration",
    "lists": "ordered lists of responses to train on",
    "reference": "log-probabilities of the lists' responses under the reference policy",
    "train": "a trained policy and its training curves",
    "items": "what a benchmark asks",
    "generate": "what a policy answered",
    "evaluate": "answers with scores, and a benchmark's metrics",
    "best_of_n": "Best-of-N under the run's reward",
    "embed": "vectors of a retrieval corpus",
    "retrieve": "nearest passages and Recall@N",
    "report": "the run's report",
}


def describe(run: AuditedRun, pack: Mapping[str, Any], members: Mapping[str, tuple[int, str]]) -> bytes:
    """ro-crate-metadata.json.

    Parameters
    ----------
    pack
        The content of pack.json.
    members
        Name in the pack → (size in bytes, sha256) of every file, this one and the checksums aside.
    """
    manifests = {node.name: manifest_of(run, node.name) for node in run.nodes}
    started, ended = _span(manifests)
    crate = ROCrate(version=VERSION)
    crate.metadata.extra_contexts.append(TERMS)
    profiles = (crate.metadata.profile, WORKFLOW)
    crate.metadata["conformsTo"] = [{"@id": url} for url in profiles]
    crate.name = str(getattr(run.params.report, "title", None) or "LARPO run")
    crate.description = (
        f"A run of LARPO at commit {pack['commit'][:12]}: {len(run.nodes)} nodes with their outputs, code, parameters "
        "and records, packed by `larpo pack` to be checked by `larpo audit`."
    )
    # Not the clock's: the same run makes the same pack.
    crate.root_dataset["datePublished"] = ended or "1970-01-01"
    crate.root_dataset["conformsTo"] = [
        crate.add(ContextEntity(crate, url, {"@type": "CreativeWork", "name": name, "version": version}))
        for url, (name, version) in PROFILES.items()
    ]
    crate.root_dataset["license"] = _licence(crate, run, members)
    files = {name: _file(crate, name, *members[name]) for name in members if not _output_of(run, name)}
    workflow = _workflow(crate, members["run/dvc.yaml"], pack["commit"])
    crate.mainEntity = workflow
    files["README.md"]["about"] = crate.root_dataset
    code = files["repository.bundle"]
    code["name"], code["version"] = "the code and its history as a Git bundle", pack["commit"]
    code["description"] = f"git clone -b run repository.bundle; commit {pack['commit']}"
    outputs = {path: _output(crate, path, node, entry, members, pack) for node, path, entry in _outputs(run)}
    sources = _sources(crate, manifests)
    actions = [
        _action(crate, run, node, manifests[node.name], outputs, files, sources, pack["commit"]) for node in run.nodes
    ]
    whole = {
        "@type": "CreateAction",
        "name": "the run",
        "description": "dvc repro",
        "instrument": workflow,
        "object": [files[name] for name in ("run/params.yaml",) if name in files] + sources.get("", []),
        "result": [outputs[path] for path in outputs if path.startswith("report/")] or list(outputs.values()),
    } | ({"startTime": started, "endTime": ended} if started else {})
    crate.root_dataset["mentions"] = [_entity(crate, "#run", whole), *actions]
    text = json.dumps(crate.metadata.generate(), indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def _entity(crate: ROCrate, identifier: str, properties: dict[str, Any]) -> ContextEntity:
    """An entity whose properties may be other entities."""
    made = crate.add(ContextEntity(crate, identifier, {"@type": properties.pop("@type")}))
    for name, value in properties.items():
        made[name] = _plain(value)
    return made


def _plain(value: Any) -> Any:
    """A list of one as its element, as RO-Crate wants it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _file(crate: ROCrate, name: str, size: int, sha256: str) -> Any:
    facts = {"name": name, "contentSize": str(size), "sha256": sha256}
    facts["encodingFormat"] = FORMATS.get(PurePosixPath(name).suffix, "application/octet-stream")
    return crate.add_file(dest_path=name, properties=facts)


def _workflow(crate: ROCrate, file: tuple[int, str], commit: str) -> Any:
    language = {"name": "DVC pipeline", "url": {"@id": "https://dvc.org/"}, "alternateName": "dvc.yaml"}
    crate.add(dvc := ComputerLanguage(crate, identifier="https://dvc.org/", properties=language))
    facts = {"name": "the graph of LARPO", "version": commit, "contentSize": str(file[0]), "sha256": file[1]}
    facts["encodingFormat"] = FORMATS[".yaml"]
    return crate.add_workflow(dest_path="run/dvc.yaml", properties=facts, lang=dvc)


def _outputs(run: AuditedRun) -> list[tuple[LockedNode, str, Entry]]:
    return [(node, path, entry) for node in run.nodes for path, entry in node.outs.items()]


def _output_of(run: AuditedRun, name: str) -> bool:
    """Whether a member is an output, or lies in one: those are described as outputs."""
    path = name.removeprefix("run/")
    if name == "run/dvc.yaml":
        return True  # the workflow
    return name != path and any(str(p) in run.producer for p in (PurePosixPath(path), *PurePosixPath(path).parents))


def _output(
    crate: ROCrate,
    path: str,
    node: LockedNode,
    entry: Entry,
    members: Mapping[str, tuple[int, str]],
    pack: Mapping[str, Any],
) -> Any:
    kind = node.name.split("@")[0]
    what = "the node's record of itself" if path == node.manifest else MADE.get(kind, "an output")
    facts: dict[str, Any] = {"name": path, "description": f"{node.name}: {what}", "md5": entry.md5.removesuffix(".dir")}
    if path in {left["path"] for left in pack["left_out"]}:
        facts |= {"@type": "Dataset" if entry.md5.endswith(".dir") else "CreativeWork"}
        facts["description"] += "; left out of this pack"
        return _entity(crate, f"#{path}", facts | {"contentSize": str(entry.size)})
    if entry.md5.endswith(".dir"):
        facts["description"] += f"; {entry.files} files, md5 as DVC makes it of their names and md5s"
        found = crate.add_dataset(dest_path=f"run/{path}/", properties=facts)
        inside = [name for name in members if name.startswith(f"run/{path}/")]
        found["hasPart"] = _plain([_file(crate, name, *members[name]) for name in inside])
        found["contentSize"] = str(sum(members[name][0] for name in inside))
        return found
    made = _file(crate, f"run/{path}", *members[f"run/{path}"])
    for name, value in facts.items():
        made[name] = value
    return made


def _sources(crate: ROCrate, manifests: Mapping[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Models and datasets from outside, by the node that read them; under "" all of them."""
    made: dict[str, Any] = {}
    found: dict[str, list[Any]] = {"": []}
    for name, manifest in manifests.items():
        for source in (manifest.get("notes") or {}).get("sources") or []:
            identifier = "#source/" + "/".join(str(source.get(k)) for k in ("kind", "name", "version"))
            identifier = identifier.replace(" ", "-")
            if identifier not in made:
                facts = {"@type": "CreativeWork", "name": str(source.get("name")), "description": str(source["kind"])}
                facts |= {"version": source["version"]} if source.get("version") else {}
                facts |= {"identifier": source["hash"]} if source.get("hash") else {}
                facts |= {"license": source["licence"]} if source.get("licence") else {}
                made[identifier] = _entity(crate, identifier, facts)
                found[""].append(made[identifier])
            found.setdefault(name, []).append(made[identifier])
    return found


def _action(
    crate: ROCrate,
    run: AuditedRun,
    node: LockedNode,
    manifest: dict[str, Any],
    outputs: dict[str, Any],
    files: dict[str, Any],
    sources: dict[str, list[Any]],
    commit: str,
) -> ContextEntity:
    """The execution of one node: command, what it read, what it made, when, with which parameters."""
    module = node.cmd.split()[2] if node.cmd.startswith("python -m ") else node.cmd
    code = (manifest.get("git") or {}).get("commit") or commit
    tool = f"#{module}@{code[:12]}"
    if crate.get(tool) is None:
        facts = {"@type": "SoftwareApplication", "name": module, "softwareVersion": code}
        _entity(crate, tool, facts | {"description": "a module of repository.bundle"})
    read = [outputs[path] for path in node.deps if path in outputs]
    for path in node.deps:  # whole folders of outputs, which the report reads
        if path not in outputs and path not in run.sources:
            read += [outputs[p] for p in outputs if p.startswith(f"{path}/") and not p.endswith(".manifest.json")]
    settings = [
        _entity(
            crate,
            f"#{node.name}/{key}",
            {"@type": "PropertyValue", "name": key, "value": json.dumps(value, sort_keys=True, ensure_ascii=False)},
        )
        for key, value in (manifest.get("params") or {}).items()
    ]
    given = [files[f"run/{path}"] for path in node.deps if f"run/{path}" in files]
    facts = {
        "@type": "CreateAction",
        "name": node.name,
        "description": node.cmd,
        "instrument": crate.get(tool),
        "object": [*read, *given, *sources.get(node.name, []), *settings],
        "result": [outputs[path] for path in node.outs],
    }
    started, ended = _times(manifest)
    if started:
        facts |= {"startTime": started, "endTime": ended}
    return _entity(crate, f"#{node.name}", facts)


def _times(manifest: dict[str, Any]) -> tuple[str | None, str | None]:
    try:
        start = datetime.fromisoformat(manifest["started"]).astimezone(UTC)
        end = start + timedelta(seconds=float(manifest["seconds"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None, None
    return start.isoformat(timespec="seconds"), end.isoformat(timespec="seconds")


def _span(manifests: Mapping[str, dict[str, Any]]) -> tuple[str | None, str | None]:
    times = [pair for pair in map(_times, manifests.values()) if pair[0]]
    return (min(s for s, _ in times), max(e for _, e in times)) if times else (None, None)


def _licence(crate: ROCrate, run: AuditedRun, members: Mapping[str, tuple[int, str]]) -> Any:
    """The repository's licence file, by name; a line that none is stated where there is none."""
    if run.licence is None:
        return _entity(crate, "#licence", {"@type": "CreativeWork", "name": "no licence is stated"})
    facts = {"@type": "CreativeWork", "name": run.licence, "description": "a file of repository.bundle"}
    return _entity(crate, "#licence", facts)
