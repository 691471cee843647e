"""Where every input came from: its producer's recorded output, a commit's code, or a named source."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from larpo.audit.lineage.code import check_code
from larpo.audit.lineage.commits import Commit
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, judged, unchecked
from larpo.audit.science.recompute import different_values
from larpo.config.overlays import StrictLoader
from larpo.errors import UserError, one_line
from larpo.hashing import dvc_hash, file_hash, tree_hash
from larpo.workspace.dvc_lock import LOCK, LockedNode

PART = "lineage"
GRAPH = "dvc.yaml"
CODE = ("larpo/", "tasks/", "flows/", GRAPH)


def check_lineage(run: AuditedRun) -> Iterator[Check]:
    manifests, broken = {}, []
    for node in run.nodes:
        try:
            manifests[node.name] = run.manifest(node)
        except UserError as error:
            broken.append(str(error))
    yield judged(PART, "manifests", len(run.nodes), f"{len(manifests)} nodes' records of themselves are there", broken)
    yield producers(run)
    yield records(run, manifests)
    yield params_recorded(run, manifests)
    yield code_committed(run, manifests)
    yield sources(run, manifests)
    yield from check_code(run, manifests)
    yield lock_committed(run)


def producers(run: AuditedRun) -> Check:
    """In dvc.lock: what a node read is what its producer made."""
    failures, count = [], 0
    for node in run.nodes:
        for path, entry in node.deps.items():
            if path in run.producer:
                count += 1
                made = run.lock[run.producer[path]].outs[path]
                if made.md5 != entry.md5:
                    failures.append(f"{node.name}: read {path} {entry.md5}, {run.producer[path]} made {made.md5}")
    return judged(PART, "inputs are their producers' outputs", count, f"{count} edges of the graph", failures)


def records(run: AuditedRun, manifests: dict[str, dict[str, Any]]) -> Check:
    """In the manifests: hashes of inputs and outputs are those of the files that lie there, and of the producers."""
    failures, count = [], 0
    for node in run.nodes:
        if (record := manifests.get(node.name)) is None:
            continue
        if record.get("node") != node.name:
            failures.append(f"{node.manifest}: is the record of {record.get('node')!r}, expected {node.name!r}")
        listed = record.get("outputs", {})
        if set(listed) != set(node.products):
            differ = ", ".join(sorted(set(listed) ^ set(node.products)))
            failures.append(f"{node.manifest}: outputs are not those of dvc.lock ({differ})")
        for side in ("inputs", "outputs"):
            for path, recorded in record.get(side, {}).items():
                count += 1
                if not _inside(path, node.deps if side == "inputs" else node.outs):
                    failures.append(f"{node.manifest}: {side} {path} is none of the node's in dvc.lock")
                elif run.tree_hash(path) is None and path in run.left_out:
                    count -= 1
                elif run.tree_hash(path) != recorded:
                    failures.append(f"{node.manifest}: {side} {path} {recorded}, found {run.tree_hash(path)}")
    return judged(PART, "manifests' hashes", count, f"{count} inputs and outputs", failures)


def _inside(path: str, declared: Collection[str]) -> bool:
    """Whether a path is a declared one or lies in one; a manifest may name any file of the machine."""
    place = PurePosixPath(path)
    return ".." not in place.parts and any(str(p) in declared for p in (place, *place.parents))


def params_recorded(run: AuditedRun, manifests: dict[str, dict[str, Any]]) -> Check:
    """In the manifests: parameters are those of params.yaml, defaults filled in."""
    failures, count = [], 0
    tree = run.params.model_dump(mode="json")
    for node in run.nodes:
        for key, recorded in manifests.get(node.name, {}).get("params", {}).items():
            count += 1
            now: Any = tree
            for part in key.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            failures += different_values(f"{node.manifest}: params", recorded, now, key, "params.yaml has")
    detail = f"{count} sections with their defaults against params.yaml"
    return judged(PART, "manifests' parameters", count, detail, failures)


def code_committed(run: AuditedRun, manifests: dict[str, dict[str, Any]]) -> Check:
    """Code that a node ran is that of the commit that it names: dependencies by their content, the frame around them
    (which dvc.yaml leaves out) by the list of files that differed from the commit."""
    failures, count = [], 0
    commits: dict[str, Commit] = {}
    for node in run.nodes:
        git = manifests.get(node.name, {}).get("git") or {}
        name = git.get("commit")
        if not name:
            failures.append(f"{node.name}: made outside Git or before the first commit, so no commit holds its code")
            continue
        try:
            commit = commits[name] = commits.get(name) or Commit(run.folder, name)
        except UserError as error:
            failures.append(f"{node.name}: {error}")
            continue
        count += 1
        if git.get("dirty") and "changed" not in git:
            failures.append(f"{node.name}: ran with uncommitted changes, and the manifest does not say which")
        changed = [path for path in git.get("changed", []) if path.startswith(CODE)]
        if changed:
            failures.append(f"{node.name}: ran with uncommitted changes in {', '.join(changed[:3])}; commit, run again")
            continue
        failures += _code_of(run, node, commit)
        kind = run.graph[node.name].kind
        if _stage(run.folder.joinpath(GRAPH).read_bytes(), kind) != _stage(commit.content(GRAPH), kind):
            failures.append(
                f"{node.name}: {GRAPH} in commit {name[:10]} declares its stage otherwise; commit, run again"
            )
    detail = f"{count} nodes, {len(commits)} commits ({', '.join(c[:10] for c in commits) or 'none'})"
    return judged(PART, "code is committed", count, detail, failures)


def _stage(graph: bytes | None, kind: str) -> Any:
    """A stage as it is written in dvc.yaml, without what is only said of it; None where there is none."""
    try:
        stage = yaml.load(graph or b"", Loader=StrictLoader)["stages"][kind]
        for part in (stage, stage.get("do", {})):
            part.pop("desc", None), part.pop("meta", None)
        return stage
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return None


def _code_of(run: AuditedRun, node: LockedNode, commit: Commit) -> list[str]:
    failures = []
    for path in (p for p in node.deps if p in set(run.sources) and p.startswith(CODE)):
        found = commit.files(path)
        if not found:
            failures.append(f"{node.name}: {path} is not in commit {commit.commit[:10]}")
        elif node.deps[path].md5 != dvc_hash(found):
            failures.append(f"{node.name}: ran {path} as it is not in commit {commit.commit[:10]}; commit, run again")
    return failures


def origins(run: AuditedRun, manifests: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Sources of the run by the node at which they enter, as its manifest names them."""
    return {
        node.name: manifests.get(node.name, {}).get("notes", {}).get("sources", [])
        for node in run.nodes
        if run.graph[node.name].meta.sources
    }


def sources(run: AuditedRun, manifests: dict[str, dict[str, Any]]) -> Check:
    """Each thing from outside has a name and a licence, or it is said that none is stated; files and folders still have
    the hash that was recorded. What entered is also an output with a hash: data/policy/0, data/prompts, data/items."""
    failures, count, told = [], 0, {}
    for name, found in origins(run, manifests).items():
        if not found and not (name == "reward" and run.params.reward.source is None):
            failures.append(f"{name}: its manifest names no source")
        for source in found:
            count += 1
            label = f"{source['name']}{' ' + source['version'] if source['version'] else ''}"
            told[label] = source["licence"] or "licence not stated"
            if source["kind"] == "hub" and not source["version"]:
                told[label] += f", revision not pinned: what was fetched is {name}'s output"
            place = run.folder / source["name"]
            try:
                here = source["kind"] in ("file", "folder") and place.exists()
                if here and (now := tree_hash(place)) != source["hash"]:
                    failures.append(f"{name}: {source['name']}: hash {now}, recorded {source['hash']}")
            except (OSError, ValueError) as error:  # no name for a file, or one that may not be read
                failures.append(f"{name}: {source['name'][:80]}: {one_line(error)[:120]}")
    detail = "; ".join(f"{label} ({licence})" for label, licence in told.items())
    return judged(PART, "sources", count, detail or "none", failures)


def lock_committed(run: AuditedRun) -> Check:
    """Whether Git dates this dvc.lock: a lock that no commit holds may have been written a minute ago."""
    try:
        held = Commit(run.folder, "HEAD").files(LOCK)
    except UserError:
        return unchecked(PART, "dvc.lock is committed", "the folder is in no Git repository")
    if not held or held[""] != file_hash(run.folder / LOCK):
        return unchecked(PART, "dvc.lock is committed", "HEAD holds no or another dvc.lock; `git commit` dates a run")
    return judged(PART, "dvc.lock is committed", 1, "HEAD holds it as it lies here", [])
