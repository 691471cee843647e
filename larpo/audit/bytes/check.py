"""Every byte against dvc.lock: outputs, dependencies, parameters, commands, and the objects in DVC's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from larpo.audit.compare.rules import first_difference
from larpo.audit.open import PARAMS, AuditedRun
from larpo.audit.results import Check, judged, unchecked
from larpo.audit.science.recompute import ABSENT, different_values
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
    missing = [f"{name}: declared in dvc.yaml, not in dvc.lock; run `dvc repro`" for name in run.missing]
    detail = f"{len(run.nodes)} of {len(run.graph)} nodes of dvc.yaml are in dvc.lock"
    if gone := [name for name in run.lock if name not in run.graph]:
        detail += f"; {len(gone)} more that it no longer declares are left out ({gone[0]} …)"
    return judged(PART, "every node was run", len(run.graph), detail, missing)


def declared_as_run(run: AuditedRun) -> Check:
    """Commands, dependencies and outputs of dvc.lock are those of dvc.yaml."""
    failures = []
    for node in run.nodes:
        declared = run.declared[node.name]
        for what, wanted, found in (
            ("command", declared.cmd, node.cmd),
            ("dependencies", declared.deps, frozenset(node.deps)),
            ("outputs", declared.outs, frozenset(node.outs)),
        ):
            if wanted != found:
                differ = f"{found!r}, dvc.yaml declares {wanted!r}"
                if isinstance(wanted, frozenset):
                    differ = ", ".join(f"{'+' if p in found else '-'}{p}" for p in sorted(wanted ^ found))
                failures.append(f"{node.name}: {what} in dvc.lock: {differ}")
    return judged(PART, "as declared", len(run.nodes), "commands, dependencies and outputs of every node", failures)


def files_as_locked(run: AuditedRun, name: str, entries: dict[str, Entry]) -> Check:
    failures, size, count, out = [], 0, 0, 0
    for path, entry in entries.items():
        if path in run.left_out and not (run.folder / path).exists():
            out += 1
            continue
        found = run.md5(path)
        size += entry.size or 0
        count += entry.files or 1
        if found is None:
            failures.append(f"{path}: missing")
        elif found != entry.md5:
            failures.append(what_differs(run, entry, found))
    told = f"; {out} outputs are not in the pack and were not checked" if out else ""
    return judged(PART, name, count, f"{count} files, {size:,} bytes against dvc.lock{told}", failures)


def what_differs(run: AuditedRun, entry: Entry, found: str) -> str:
    """The first file, byte, row or tensor that is not as locked; a hash where the cache has no copy to compare with."""
    path, place = entry.path, run.folder / entry.path
    if entry.md5.endswith(".dir"):
        listing = run.listing(entry)
        if listing is None:
            return f"{path}: hash {found}, dvc.lock has {entry.md5}; no copy in the cache to tell which file"
        here = set(run.files(path)) if place.is_dir() else set()
        for name in sorted(here | set(listing)):
            if name not in here:
                return f"{path}/{name}: missing"
            if name not in listing:
                return f"{path}/{name}: not part of what was recorded"
            md5 = run.md5(f"{path}/{name}")
            if md5 != listing[name]:
                return what_differs(run, Entry(f"{path}/{name}", listing[name]), str(md5))
    kept = run.cached(entry.md5)
    if kept is None:
        return f"{path}: hash {found}, dvc.lock has {entry.md5}; no copy in the cache to tell which byte"
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
            for key in keys or sorted({*recorded, *files[file]}):
                count += 1
                now, then = _at(files[file], key), recorded.get(key, ABSENT)
                failures += different_values(f"{node.name}: {file}", now, then, key, "dvc.lock has")
    return judged(PART, "parameters", count, f"{count} values against {PARAMS}", failures)


def _values(path: Path) -> dict[str, Any]:
    """A file of parameters; dvc.yaml may name more than params.yaml."""
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected keys with values, found {type(found).__name__}")
    return found


def _at(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return ABSENT
        tree = tree[part]
    return tree


def cache_intact(run: AuditedRun) -> Check:
    """Objects of the run in DVC's cache: a broken one would be checked out, or pushed, as if it were right."""
    wanted: set[str] = set()
    for node in run.nodes:
        for entry in node.outs.values():
            wanted.add(entry.md5)
            if entry.md5.endswith(".dir") and (listing := run.listing(entry)):
                wanted |= set(listing.values())
    present, failures = 0, []
    for md5 in sorted(wanted):
        place = run.object(md5)
        if place.is_file():
            present += 1
            if run.cached(md5) is None:
                failures.append(f"{place}: its content has another hash; remove it and `dvc fetch` or `dvc repro`")
    if not present:
        return unchecked(PART, "DVC's cache", "it holds nothing of this run")
    detail = f"{present} objects of this run hashed"
    absent = len(wanted) - present
    return judged(PART, "DVC's cache", present, detail + (f"; {absent} are not there" if absent else ""), failures)
