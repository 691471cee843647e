"""What one node of two runs was given that differs: command, parameters, code, data, packages, machine."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from larpo.audit.open import AuditedRun
from larpo.errors import UserError
from larpo.hashing import dvc_hash
from larpo.workspace.dvc_lock import Entry, LockedNode
from larpo.workspace.git import git, git_bytes

ABSENT = "(absent)"
CODE = ("larpo/", "tasks/", "flows/")


@dataclass(frozen=True)
class Change:
    """One difference in what nodes were given.

    Attributes
    ----------
    kind
        command, parameter, seed, reads (other outputs than before), code, data, packages, machine, engine.
    what
        A dotted key, a file, a package, a property of the machine.
    before, after
        Its value in either run, short.
    nodes
        Nodes that were given it directly, in the graph's order.
    detail
        For files, where both versions are at hand: how many lines, and the first that differs.
    """

    kind: str
    what: str
    before: str
    after: str
    nodes: tuple[str, ...] = ()
    detail: str = ""

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"nodes": list(self.nodes)}

    @property
    def line(self) -> str:
        return f"{self.kind:<9}  {self.what}: {self.detail or f'{self.before} → {self.after}'}"


def declared(a: AuditedRun, b: AuditedRun, name: str) -> list[Change]:
    """What dvc.lock holds of the node's own: its command, code, data from outside and parameters."""
    one, other = a.lock[name], b.lock[name]
    found = []
    if one.cmd != other.cmd:
        found.append(Change("command", name, one.cmd, other.cmd))
    reads = [set(node.deps) - set(run.sources) for run, node in ((a, one), (b, other))]
    if reads[0] != reads[1]:
        before, after = (", ".join(sorted(left - right)) or "(none)" for left, right in (reads, reads[::-1]))
        found.append(Change("reads", name, before, after))
    for path in sorted({*one.deps, *other.deps} - reads[0] - reads[1]):
        was, now = one.deps.get(path), other.deps.get(path)
        if was is None or now is None or was.md5 != now.md5:
            kind = "code" if path.startswith(CODE) or path.endswith(".py") else "data"
            values = [ABSENT if e is None else e.md5[:12] for e in (was, now)]
            found.append(Change(kind, path, *values, detail=_text_change(a, b, name, path) if was and now else ""))
    manifests = [manifest_of(run, name) for run in (a, b)]
    for key, was, now in differences(_params(one), _params(other)):
        values = [_value(value, key, manifest) for value, manifest in zip((was, now), manifests, strict=True)]
        found.append(Change("seed" if key.split(".")[-1] == "seed" else "parameter", key, *values))
    return found + _given(*manifests)


def _given(one: dict[str, Any], other: dict[str, Any]) -> list[Change]:
    """Models and datasets from outside that both name and that are no longer the same (larpo.sources.provenance)."""
    sides = [{s.get("name"): s for s in (m.get("notes") or {}).get("sources") or []} for m in (one, other)]
    found = []
    for source in (name for name in sides[0] if name in sides[1]):
        for fact in ("hash", "version"):
            was, now = (side[source].get(fact) for side in sides)
            if was != now and was is not None and now is not None:
                found.append(Change("data", f"{source} ({fact})", short(was, 12), short(now, 12)))
    return found


def recorded(a: AuditedRun, b: AuditedRun, name: str) -> list[Change]:
    """What the two manifests say of packages, machine and engine."""
    one, other = (manifest_of(run, name) for run in (a, b))
    found = []
    for kind, sides in (
        ("packages", [m.get("packages") for m in (one, other)]),
        ("machine", [m.get("hardware") for m in (one, other)]),
        ("engine", [(m.get("notes") or {}).get("engine") for m in (one, other)]),
    ):
        if all(isinstance(side, dict) for side in sides):
            for key, was, now in differences(*sides):
                found.append(Change(kind, key, short(was), short(now)))
    return found


def hints(a: AuditedRun, b: AuditedRun, name: str) -> list[str]:
    """What else could explain outputs that differ from equal inputs, where the manifests and Git tell."""
    one, other = (manifest_of(run, name) for run in (a, b))
    found = []
    code = _undeclared_code(a, b, one, other)
    if code:
        found.append("code that no node declares differs: " + ", ".join(code[:5]) + (" …" if len(code) > 5 else ""))
    for label, manifest in (("a", one), ("b", other)):
        if manifest.get("resumed"):
            found.append(f"{label} was resumed after a stop")
        if (manifest.get("git") or {}).get("dirty"):
            found.append(f"{label} ran with uncommitted changes")
        notes = manifest.get("notes") or {}
        if notes.get("origin") == "folder" and "sources" not in notes:
            found.append(f"{label} read a model folder whose hash it did not record: {notes.get('model')}")
    return found


def manifest_of(run: AuditedRun, name: str) -> dict[str, Any]:
    """The node's manifest; empty where it has none that can be read (the audit's own check tells that)."""
    try:
        found = run.manifest(run.lock[name])
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def commit_of(manifest: dict[str, Any]) -> str | None:
    """The commit that a manifest names, if it is one: it may become an argument of git."""
    commit = (manifest.get("git") or {}).get("commit")
    return commit if isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def differences(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, value in `a`, value in `b` of all that differs; what one lacks is ABSENT and named as a whole."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}, key=str):
            dotted = f"{prefix}.{key}" if prefix else str(key)
            if key in a and key in b:
                yield from differences(a[key], b[key], dotted)
            else:
                yield dotted, a.get(key, ABSENT), b.get(key, ABSENT)
    elif a != b or type(a) is not type(b):
        yield prefix, a, b


def short(value: Any, length: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else text[: length - 1] + "…"


def _params(node: LockedNode) -> dict[str, Any]:
    """Parameters as one tree; those of another file than params.yaml stand under its name."""
    tree: dict[str, Any] = {}
    for file, values in node.params.items():
        root = tree if file == "params.yaml" else tree.setdefault(file, {})
        for dotted, value in values.items():
            *parents, last = dotted.split(".")
            place = root
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = value
    return tree


def _value(value: Any, key: str, manifest: dict[str, Any]) -> str:
    """The value; where params.yaml does not name it, the default that the manifest says was used."""
    if value is not ABSENT:
        return short(value)
    sections = manifest.get("params") or {}
    for section, found in sections.items():
        if key == section or key.startswith(f"{section}."):
            for part in key[len(section) + 1 :].split(".") if key != section else []:
                if not isinstance(found, dict) or part not in found:
                    return ABSENT
                found = found[part]
            return f"{short(found)} (default)"
    return ABSENT


def _text_change(a: AuditedRun, b: AuditedRun, name: str, path: str) -> str:
    """`+3 −1 lines, first FILE:12: old → new`; empty where a version is not at hand or is no text."""
    versions = [contents(run, name, path) for run in (a, b)]
    if versions[0] is None or versions[1] is None:
        return ""
    one, other = versions
    files = [file for file in sorted({*one, *other}) if one.get(file) != other.get(file)]
    added = removed = 0
    first = ""
    for file in files:
        try:
            lines = [v.get(file, b"").decode("utf-8").splitlines() for v in (one, other)]
        except UnicodeDecodeError:
            return f"{len(files)} files, {file} first" if len(files) > 1 else ""
        for tag, i, j, k, m in difflib.SequenceMatcher(None, *lines, autojunk=False).get_opcodes():
            if tag == "equal":
                continue
            removed, added = removed + j - i, added + m - k
            if not first:
                was, now = (side[start:end] for side, start, end in ((lines[0], i, j), (lines[1], k, m)))
                inside = f"{file}:" if file else "line "
                values = [short(side[0].strip(), 70) if side else "(nothing)" for side in (was, now)]
                first = f"first {inside}{(k if now else i) + 1}: {values[0]} → {values[1]}"
    return f"+{added} −{removed} lines, {first}" if first else ""


def contents(run: AuditedRun, name: str, path: str) -> dict[str, bytes] | None:
    """File name (relative to `path`, '' for a file) → bytes of a dependency as the node read it.

    From the folder where it still has the recorded hash, else from the commit of the node's manifest or HEAD; None
    where neither has it.
    """
    entry = run.lock[name].deps[path]
    if run.md5(path) == entry.md5:
        place = run.folder / path
        return {f: (place / f).read_bytes() for f in run.files(path)} if place.is_dir() else {"": place.read_bytes()}
    for commit in (commit_of(manifest_of(run, name)), "HEAD"):
        if commit and (found := _from_git(run.folder, commit, entry)) is not None:
            return found
    return None


def _from_git(folder: Path, commit: str, entry: Entry) -> dict[str, bytes] | None:
    listed = git(folder, "ls-tree", "-r", "-z", "--name-only", commit, "--", entry.path, check=False)
    found = {}
    for file in [x for x in listed.split("\0") if x]:
        found[file[len(entry.path) + 1 :]] = git_bytes(folder, "show", f"{commit}:./{file}", check=False)
    if not found:
        return None
    md5 = dvc_hash({n: _md5(x) for n, x in found.items()}) if "" not in found else _md5(found[""])
    return found if md5 == entry.md5 else None


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _undeclared_code(a: AuditedRun, b: AuditedRun, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Files of larpo/ and tasks/ that differ between the manifests' commits; equal blobs have equal ids anywhere."""
    sides = []
    for run, manifest in ((a, one), (b, other)):
        commit = commit_of(manifest)
        listed = git(run.folder, "ls-tree", "-r", "-z", commit, "--", "larpo", "tasks", check=False) if commit else ""
        sides.append({line.split("\t", 1)[1]: line.split()[2] for line in listed.split("\0") if "\t" in line})
    if not all(sides):
        return []
    paths = {path for path in {*sides[0], *sides[1]} if sides[0].get(path) != sides[1].get(path)}
    return sorted(path for path in paths if path.endswith(".py"))
