"""Every byte against dvc.lock: outputs, dependencies, parameters, commands, and the objects in DVC's cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from larpo.audit.compare.files import first_difference
from larpo.audit.compare.values import ABSENT, different_values, value_at
from larpo.audit.open import PARAMS, AuditedRun
from larpo.audit.results import Check, conclude, unchecked
from larpo.errors import UserError
from larpo.workspace.dvc_lock import Entry, read_yaml

PART = "bytes"


def check_bytes(run: AuditedRun) -> Iterator[Check]:
    yield nodes_run(run)
    yield declared_as_run(run)
    yield files_as_locked(run, "outputs", {p: e for n in run.nodes for p, e in n.outs.items()})
    sources = set(run.sources)
    given = {p: e for n in run.nodes for p, e in n.deps.items() if p in sources}
    yield files_as_locked(run, "code and given data", given)
    # What nodes make is among the outputs; folders of several nodes' outputs (the report's) are not.
    rest = {p: e for n in run.nodes for p, e in n.deps.items() if p not in sources and p not in run.producer}
    yield files_as_locked(run, "folders that nodes read", rest)
    yield params_as_locked(run)
    yield cache_intact(run)


def nodes_run(run: AuditedRun) -> Check:
    if run.unfinished:
        return unchecked(PART, "every node was run", run.unfinished)
    missing = [f"{name}: declared in dvc.yaml, not in dvc.lock; run `dvc repro`" for name in run.missing]
    detail = f"{len(run.nodes)} of {len(run.graph)} nodes of dvc.yaml are in dvc.lock"
    if gone := [name for name in run.lock if name not in run.graph]:
        detail += f"; {len(gone)} more that it no longer declares are left out ({gone[0]} …)"
    return conclude(PART, "every node was run", len(run.graph), detail, missing)


def declared_as_run(run: AuditedRun) -> Check:
    """Commands, dependencies and outputs of dvc.lock are those of dvc.yaml."""
    failures = []
    for node in run.nodes:
        declared = run.declared[node.name]
        if node.cmd != declared.cmd:
            failures.append(f"{node.name}: command in dvc.lock: {node.cmd!r}, dvc.yaml declares {declared.cmd!r}")
        for what, paths, locked in (
            ("dependencies", declared.deps, set(node.deps)),
            ("outputs", declared.outs, set(node.outs)),
        ):
            if differ := ", ".join(f"{'+' if p in locked else '-'}{p}" for p in sorted(paths ^ locked)):
                failures.append(f"{node.name}: {what} in dvc.lock: {differ}")
    return conclude(PART, "as declared", len(run.nodes), "commands, dependencies and outputs of every node", failures)


def files_as_locked(run: AuditedRun, name: str, entries: dict[str, Entry]) -> Check:
    failures, size, count, out = [], 0, 0, 0
    for path, entry in entries.items():
        if run.absent(path):
            out += 1
            continue
        md5 = run.md5(path)
        size += entry.size or 0
        count += entry.files or 1
        if md5 is None:
            failures.append(f"{path}: missing")
        elif md5 != entry.md5:
            failures.append(what_differs(run, entry, md5))
    remark = f"; {out} outputs are not in the pack and were not checked" if out else ""
    return conclude(PART, name, count, f"{count} files, {size:,} bytes against dvc.lock{remark}", failures)


def what_differs(run: AuditedRun, entry: Entry, md5: str) -> str:
    """The first file, byte, row or tensor that is not as locked; a hash where the cache has no copy to compare with."""
    path, place = entry.path, run.folder / entry.path
    if entry.md5.endswith(".dir"):
        listing = run.listing(entry)
        if listing is None:
            return f"{path}: hash {md5}, dvc.lock has {entry.md5}; no copy in the cache to tell which file"
        here = set(run.files(path)) if place.is_dir() else set()
        for name in sorted(here | set(listing)):
            if name not in here:
                return f"{path}/{name}: missing"
            if name not in listing:
                return f"{path}/{name}: not part of what was recorded"
            inner = run.md5(f"{path}/{name}")
            if inner != listing[name]:
                return what_differs(run, Entry(f"{path}/{name}", listing[name]), str(inner))
    kept = run.cached(entry.md5)
    if kept is None:
        return f"{path}: hash {md5}, dvc.lock has {entry.md5}; no copy in the cache to tell which byte"
    return f"{path}: {first_difference(kept, place)}"


def params_as_locked(run: AuditedRun) -> Check:
    """Values that dvc.lock recorded for each node against params.yaml, keys as dvc.yaml tracks them."""
    failures, count = [], 0
    files: dict[str, Any] = {}
    for node in run.nodes:
        for file, keys in run.declared[node.name].params.items():
            if file not in files:
                files[file] = _values(run.folder / file)
            recorded = node.params.get(file, {})
            now = {key: value_at(files[file], key) for key in keys or sorted({*recorded, *files[file]})}
            then = {key: recorded.get(key, ABSENT) for key in now}
            failures += different_values(f"{node.name}: {file}", now, then, "dvc.lock has", tolerance=0)
            count += len(now)
    return conclude(PART, "parameters", count, f"{count} values against {PARAMS}", failures)


def _values(path: Path) -> dict[str, Any]:
    """A file of parameters; dvc.yaml may name more than params.yaml."""
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys with values, found {type(tree).__name__}")
    return tree


def cache_intact(run: AuditedRun) -> Check:
    """Objects of the run in DVC's cache: a broken one would be checked out, or pushed, as if it were right."""
    recorded: set[str] = set()
    for node in run.nodes:
        for entry in node.outs.values():
            recorded.add(entry.md5)
            if entry.md5.endswith(".dir") and (listing := run.listing(entry)):
                recorded |= set(listing.values())
    present, failures = 0, []
    for md5 in sorted(recorded):
        place = run.object(md5)
        if place.is_file():
            present += 1
            if run.cached(md5) is None:
                failures.append(f"{place}: its content has another hash; remove it and `dvc fetch` or `dvc repro`")
    if not present:
        return unchecked(PART, "DVC's cache", "it holds nothing of this run", False)
    detail = f"{present} objects of this run hashed"
    absent = len(recorded) - present
    return conclude(PART, "DVC's cache", present, detail + (f"; {absent} are not there" if absent else ""), failures)
