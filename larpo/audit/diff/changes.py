"""What one node of two runs was given that differs: command, parameters, code, data, packages, machine."""

import contextlib
import difflib
import json
from dataclasses import asdict, dataclass
from typing import Any

from larpo.audit.compare.values import ABSENT, differing, value_at
from larpo.audit.lineage.commits import CODE, Commit
from larpo.audit.open import AuditedRun
from larpo.audit.record import Manifest, Source
from larpo.errors import UserError
from larpo.hashing import dvc_hash
from larpo.workspace.dvc_lock import LockedNode


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
    changes = []
    if one.cmd != other.cmd:
        changes.append(Change("command", name, one.cmd, other.cmd))
    reads = [set(node.deps) - set(run.sources) for run, node in ((a, one), (b, other))]
    if reads[0] != reads[1]:
        before, after = (", ".join(sorted(left - right)) or "(none)" for left, right in (reads, reads[::-1]))
        changes.append(Change("reads", name, before, after))
    for path in sorted({*one.deps, *other.deps} - reads[0] - reads[1]):
        was, now = one.deps.get(path), other.deps.get(path)
        if was is None or now is None or was.md5 != now.md5:
            kind = "code" if path.startswith(CODE) or path.endswith(".py") else "data"
            hashes = [short(ABSENT if e is None else e.md5[:12]) for e in (was, now)]
            changes.append(Change(kind, path, *hashes, detail=_text_change(a, b, name, path) if was and now else ""))
    manifests = [run.recorded(name) for run in (a, b)]
    for key, was, now in differing(_params(one), _params(other), lists=False):
        values = [_value(value, key, manifest) for value, manifest in zip((was, now), manifests, strict=True)]
        changes.append(Change("seed" if key.split(".")[-1] == "seed" else "parameter", key, *values))
    return changes + _given(*(manifest.notes.sources for manifest in manifests))


def _given(one: list[Source], other: list[Source]) -> list[Change]:
    """Models and datasets from outside that both name and that are no longer the same."""
    after = {source.name: source for source in other}
    changes = []
    for was in (source for source in one if source.name in after):
        for fact in ("hash", "version"):
            values = [getattr(source, fact) for source in (was, after[was.name])]
            if None not in values and values[0] != values[1]:
                changes.append(Change("data", f"{was.name} ({fact})", *(short(value, 12) for value in values)))
    return changes


def around(a: AuditedRun, b: AuditedRun, name: str) -> list[Change]:
    """What the two manifests say of packages, machine and engine."""
    if name not in a.manifests or name not in b.manifests:
        return []
    one, other = a.manifests[name], b.manifests[name]
    sides = {
        "packages": (one.packages, other.packages),
        "machine": (one.hardware.model_dump(), other.hardware.model_dump()),
        "engine": (one.notes.engine, other.notes.engine),
    }
    return [
        Change(kind, key, short(was), short(now))
        for kind, (before, after) in sides.items()
        if before is not None and after is not None
        for key, was, now in differing(before, after, lists=False)
    ]


def hints(a: AuditedRun, b: AuditedRun, name: str) -> list[str]:
    """What else could explain outputs that differ from equal inputs, where the manifests and Git tell."""
    lines = []
    if code := _undeclared_code(a, b, name):
        lines.append("code that no node declares differs: " + ", ".join(code[:5]) + (" …" if len(code) > 5 else ""))
    for label, manifest in (("a", a.recorded(name)), ("b", b.recorded(name))):
        if manifest.resumed:
            lines.append(f"{label} was resumed after a stop")
        if manifest.git.dirty:
            lines.append(f"{label} ran with uncommitted changes")
        if manifest.notes.origin == "folder" and not manifest.notes.sources:
            lines.append(f"{label} read a model folder whose hash it did not record: {manifest.notes.model}")
    return lines


def short(value: Any, length: int = 60) -> str:
    """A value in at most `length` characters."""
    if value is ABSENT:
        return "(absent)"
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


def _value(value: Any, key: str, manifest: Manifest) -> str:
    """The value; where params.yaml does not name it, the default that the manifest says was used."""
    if value is ABSENT:
        for section, values in manifest.params.items():
            default = values if key == section else ABSENT
            if key.startswith(f"{section}."):
                default = value_at(values, key.removeprefix(f"{section}."))
            if default is not ABSENT:
                return f"{short(default)} (default)"
    return short(value)


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
    for commit in (run.recorded(name).git.commit, "HEAD"):
        with contextlib.suppress(UserError):  # not in this repository
            held = Commit(run.repository, commit or "HEAD")
            if (files := held.files(path)) and dvc_hash(files) == entry.md5:
                return {file: held.content(f"{path}/{file}" if file else path) for file in files}
    return None


def _undeclared_code(a: AuditedRun, b: AuditedRun, name: str) -> list[str]:
    """Files of larpo/ and tasks/ that differ between the manifests' commits."""
    try:
        one, other = (Commit(run.repository, run.recorded(name).git.commit or "").blobs for run in (a, b))
    except UserError:
        return []
    changed = {path for path in {*one, *other} if one.get(path) != other.get(path)}
    return sorted(path for path in changed if path.startswith(CODE[:2]) and path.endswith(".py"))
