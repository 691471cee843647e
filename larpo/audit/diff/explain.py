"""Why the numbers of two runs differ: the first node in which they part, what it was given, and what follows."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx

from larpo.audit.compare.files import first_difference
from larpo.audit.diff.changes import Change, around, declared, hints
from larpo.audit.open import AuditedRun
from larpo.hashing import file_hash
from larpo.workspace.dvc import kind_of

SCORES = "report/scores.json"
# Bounds of intervals follow from what stands here, and are in the JSON.
BOUNDS = ("_low", "_high")


@dataclass
class Diff:
    """What `explain` found. Names of nodes stand in the order of both graphs.

    Attributes
    ----------
    changes
        What nodes were given that differs, each once, in the order of the first node that was given it.
    surroundings
        Packages, machine and engine of nodes whose outputs differ: they may matter, or not.
    diverged
        Nodes whose outputs differ; `caused` of them were given something else themselves, `unexplained` were not, and
        read the same; the others read what differs.
    harmless
        Nodes that were given something else and made the same bytes.
    altered
        Run (a or b), node, path, md5 that its dvc.lock records, md5 found, of outputs that are not what is recorded.
    missing
        Outputs that are not there (left out of a pack, say), so not compared beyond dvc.lock.
    row
        The first row (or byte, key, file) in which the first differing output differs.
    scores
        benchmark, policy, measure, value in a, value in b: what of report/scores.json differs.
    """

    a: str
    b: str
    nodes: int = 0
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    surroundings: list[Change] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    caused: list[str] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)
    unexplained: dict[str, str] = field(default_factory=dict)
    altered: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    first: str | None = None
    before: int = 0
    row: str | None = None
    scores: list[tuple[str, str, str, Any, Any]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Nothing that decides a number differs. Packages and machines of equal outputs do not count."""
        return not (self.only_a or self.only_b or self.changes or self.diverged or self.altered)

    @property
    def follows(self) -> dict[str, int]:
        """Kind of node → how many differ only because what they read does."""
        own = {*self.caused, *self.unexplained, *(row[1] for row in self.altered)}
        return dict(Counter(kind_of(name) for name in self.diverged if name not in own))

    def record(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in ("changes", "surroundings")}
        return plain | {
            "equal": self.equal,
            "follows": self.follows,
            "changes": [change.record() for change in self.changes],
            "surroundings": [change.record() for change in self.surroundings],
            "altered": [list(row) for row in self.altered],
            "scores": [list(score) for score in self.scores],
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"a  {self.a}", f"b  {self.b}"]
        lines += [f"not there, so compared by dvc.lock alone: {path}" for path in self.missing]
        if self.equal:
            return [*lines, f"no difference: {self.nodes} nodes equal"]
        for label, names in (("a", self.only_a), ("b", self.only_b)):
            if names:
                lines.append(f"only in {label}: {', '.join(names)}")
        for run, node, path, md5, lies in self.altered:
            hashes = f"dvc.lock records {md5[:12]}, found {lies[:12]}"
            lines.append(f"altered after the run: {run}: {path} of {node}: {hashes}")
        if self.first:
            lines.append(f"first difference: {self.first}, after {self.before} equal nodes")
        if self.row:
            lines.append(f"  {self.row}")
        if self.changes:
            lines.append("what changed:")
            lines += [f"  {change.line}  [{_names(change.nodes)}]" for change in self.changes]
        if self.harmless:
            lines.append(f"made the same bytes all the same: {_names(self.harmless)}")
        lines += [f"no cause among what is declared: {name}: {why}" for name, why in self.unexplained.items()]
        if self.surroundings and self.changes:
            lines.append("differs as well, and may matter:")
            lines += [f"  {change.line}  [{_names(change.nodes)}]" for change in self.surroundings]
        if self.follows:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in self.follows.items())
            lines.append(f"follows from it: {kinds}")
        return lines + self._score_lines()

    def _score_lines(self) -> list[str]:
        shown = [score for score in self.scores if not score[2].endswith(BOUNDS)]
        if not shown:
            return ["scores: equal"] if self.diverged else []
        width = [max(len(str(row[i])) for row in shown) for i in range(3)]
        rows = ["scores that differ (a, b):"]
        for benchmark, policy, measure, one, other in shown:
            names = f"{benchmark:<{width[0]}}  {policy:<{width[1]}}  {measure:<{width[2]}}"
            rows.append(f"  {names}  {_number(one):>9}  {_number(other):>9}")
        return rows


def _names(names: tuple[str, ...] | list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def explain(a: AuditedRun, b: AuditedRun) -> Diff:
    """Compare two runs by dvc.lock, by the bytes that lie there now, and by their manifests.

    A node's outputs are compared without its manifest, which holds times. Where nothing that a node was given
    differs but its outputs do, the manifests are asked for packages, machine and engine, and Git for code that no
    node declares.
    """
    order = [name for name in merged_order(a, b) if name in a.lock or name in b.lock]
    diff = Diff(str(a.folder), str(b.folder), len(order))
    lying = [{path: run.md5(path) for node in run.nodes for path in node.outs} for run in (a, b)]
    for label, run, hashes in zip("ab", (a, b), lying, strict=True):
        _compare_with_lock(diff, label, run, hashes)
    changes: dict[tuple[str, ...], Change] = {}
    surroundings: dict[tuple[str, ...], Change] = {}
    for name in order:
        one, other = a.lock.get(name), b.lock.get(name)
        if one is None or other is None:
            (diff.only_b if one is None else diff.only_a).append(name)
            diff.first = diff.first or name
            continue
        own = declared(a, b, name)
        new = [change for change in own if _key(change) not in changes]
        _note(changes, own, name)
        sides = ((a, one), (b, other))
        read = [{p: e.md5 for p, e in node.deps.items() if p not in run.sources} for run, node in sides]
        made = [{p: e.md5 for p, e in node.products.items()} for _, node in sides]
        here = [p for p in one.products if lying[0].get(p) and lying[1].get(p)]
        parted = [p for p in here if lying[0][p] != lying[1][p]]
        differs = made[0] != made[1] or bool(parted)
        if diff.first is None:
            if differs or own:
                diff.first = name
            else:
                diff.before += 1
        if not differs:
            diff.harmless += [name] if new else []
            continue
        diff.diverged.append(name)
        diff.row = diff.row or _first_row(a, b, parted)
        seen = around(a, b, name)
        _note(surroundings, seen, name)
        if own and (new or read[0] == read[1]):
            diff.caused.append(name)
        elif made[0] != made[1] and read[0] == read[1]:
            diff.unexplained[name] = _why(a, b, name, seen)
    diff.changes, diff.surroundings = list(changes.values()), list(surroundings.values())
    diff.scores = _scores(a, b)
    return diff


def merged_order(a: AuditedRun, b: AuditedRun) -> list[str]:
    """Nodes of both graphs, each after what it needs in either, otherwise as `a` and then `b` have them."""
    graph = nx.DiGraph()
    place: dict[str, int] = {}
    for run in (a, b):
        for name, node in run.graph.items():
            place.setdefault(name, len(place))
            graph.add_node(name)
            graph.add_edges_from((need, name) for need in node.needs)
    try:
        return list(nx.lexicographical_topological_sort(graph, key=place.__getitem__))
    except nx.NetworkXUnfeasible:  # what one makes of the other's output, the other makes of the one's
        return list(place)


def _key(change: Change) -> tuple[str, ...]:
    # "reads" and "command" name the node; another node's are another change.
    return (change.kind, change.what, change.before, change.after)


def _note(known: dict[tuple[str, ...], Change], changes: list[Change], node: str) -> None:
    for change in changes:
        before = known.get(_key(change), change)
        known[_key(change)] = replace(before, nodes=(*before.nodes, node))


def _compare_with_lock(diff: Diff, label: str, run: AuditedRun, lying: dict[str, str | None]) -> None:
    for node in run.nodes:
        for path, entry in node.outs.items():
            if (md5 := lying[path]) is None:
                diff.missing.append(f"{label}: {path}")
            elif md5 != entry.md5:
                diff.altered.append((label, node.name, path, entry.md5, md5))


def _why(a: AuditedRun, b: AuditedRun, name: str, seen: list[Change]) -> str:
    """One line on outputs that differ though all that is declared is equal."""
    texts = []
    for kind, verb in (("packages", "differ"), ("engine", "differs"), ("machine", "differs")):
        if values := ", ".join(f"{c.what} {c.before} → {c.after}" for c in seen if c.kind == kind):
            texts.append(f"the {kind} {verb}: {values}")
    texts += hints(a, b, name)
    same = "code, parameters and inputs"
    if texts:
        return f"same {same}; " + "; ".join(texts)
    return f"not reproducible: {same}, packages and machine are recorded as equal"


def _first_row(a: AuditedRun, b: AuditedRun, paths: list[str]) -> str | None:
    """Where the first of these outputs differs, of the bytes that lie there now."""
    for path in paths:
        places = [run.folder / path for run in (a, b)]
        if all(place.is_dir() for place in places):
            sides = [{f: file_hash(p / f) for f in run.files(path)} for run, p in zip((a, b), places, strict=True)]
            file = next(f for f in sorted({*sides[0], *sides[1]}) if sides[0].get(f) != sides[1].get(f))
            if file not in sides[0] or file not in sides[1]:
                return f"{path}/{file}: only in {'a' if file in sides[0] else 'b'}"
            path, places = f"{path}/{file}", [place / file for place in places]
        if all(place.is_file() for place in places):
            return f"{path}: {first_difference(*places)} (expected: a, found: b)"
    return None


def _scores(a: AuditedRun, b: AuditedRun) -> list[tuple[str, str, str, Any, Any]]:
    """Measures of report/scores.json that differ; nothing where a run has none."""
    sides = [_measures(run.folder / SCORES) for run in (a, b)]
    return [
        (*key, *(side.get(key) for side in sides))
        for key in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(key) != sides[1].get(key)
    ]


def _measures(path: Path) -> dict[tuple[str, str, str], Any]:
    try:
        tree = json.loads(path.read_text("utf-8"))
        return {
            (benchmark, policy, measure): value
            for benchmark, policies in tree.items()
            for policy, measures in policies.items()
            for measure, value in measures.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}
