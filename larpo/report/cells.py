"""Tables of the page. A column in which nothing was measured is not there, nor is a table without columns."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from larpo.report.data import BenchmarkScores, Estimate, Iteration, NodeRecord, PolicyScore, RecallPoint
from larpo.report.picture import duration

NEGATIVES = {"own": "the same prompt", "random": "a random other prompt", "related": "the most similar other prompt"}
ELSEWHERE = {"sources", "drift", "computed"}
"""Notes of a manifest that the page or the audit shows in a place of their own."""


class Cell(NamedTuple):
    text: str
    small: str = ""  # below it: an interval
    colour: str | None = None  # of the policy that it names
    hover: str = ""
    code: bool = False


class Column(NamedTuple):
    head: str
    cells: list[Cell | None]  # None: not measured
    numeric: bool = True


Table = list[Column]


def measured(columns: Iterable[Column]) -> Table:
    """The columns in which something is known; none where that is no more than the rows' names."""
    known = [c for c in columns if any(cell is not None for cell in c.cells)]
    return known if len(known) > 1 else []


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else f"{value:{form}}".replace("-", "−")


def interval(estimate: Estimate | None) -> str:
    """`[31.2, 38.9]` in percent, empty without an interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def share(estimate: Estimate | None) -> Cell | None:
    """In percent, its interval below."""
    return None if estimate is None else Cell(percent(estimate.value), interval(estimate))


def quantity(estimate: Estimate | None, form: str = ".2f") -> Cell | None:
    """`0.31`, below it `[−1.20, 3.40]`."""
    if estimate is None:
        return None
    bounds = [estimate.low, estimate.high]
    return Cell(
        number(estimate.value, form), "" if None in bounds else f"[{', '.join(number(b, form) for b in bounds)}]"
    )


def plain(head: str, values: Sequence[Any], show: Callable[[Any], str] = str, numeric: bool = True) -> Column:
    """A column of values without intervals."""
    return Column(head, [None if v is None else Cell(show(v)) for v in values], numeric)


def named(head: str, names: Sequence[str], colours: dict[str, str]) -> Column:
    """Policies or iterations, each beside its colour."""
    return Column(head, [Cell(name, colour=colours[name]) for name in names], numeric=False)


def scores(bench: BenchmarkScores, colours: dict[str, str]) -> Table:
    """One benchmark, a row per policy."""
    rows = bench.policies
    columns = [named("Policy", [p.policy for p in rows], colours)]
    columns += [Column(name, [share(p.measures().get(name)) for p in rows]) for name in bench.measures()]
    columns += [
        plain("Mean reward", [p.mean_reward for p in rows], lambda v: number(v, ".3f")),
        plain("Length, tokens", [p.mean_length for p in rows], lambda v: number(v, ".1f")),
        plain("Cut off", [p.truncated for p in rows], percent),
        plain("Unparsed", [p.unparsed for p in rows], percent),
        plain("Length–reward correlation", [p.length_reward_correlation for p in rows], lambda v: number(v, ".2f")),
    ]
    return measured(columns)


def how_scored(p: PolicyScore) -> str:
    """How many items were asked, and how many outputs each was given."""
    if p.samples is None:
        how = f"sampled at temperature {number(p.temperature)}" if p.temperature else "greedy"
        return f"{p.items} items, one output each, {how}"
    sampled = "each" if p.sampled_items in (None, p.items) else f"for {p.sampled_items} of them"
    return f"{p.items} items, {p.samples} samples {sampled} at temperature {number(p.temperature)}"


def strategies(bench: BenchmarkScores) -> Table:
    rows = bench.strategy_rows()
    return measured(
        [
            plain("Policy", [policy for policy, _ in rows], numeric=False),
            plain("Strategy", [s.strategy.replace("_", " ") for _, s in rows], numeric=False),
            plain("n", [s.n for _, s in rows]),
            plain("Temperature", [s.temperature for _, s in rows], number),
            Column("Accuracy", [share(s.estimate) for _, s in rows]),
            plain("Tokens per item", [s.tokens for _, s in rows], lambda v: number(v, ".1f")),
        ]
    )


def recall(curves: dict[str, list[RecallPoint]]) -> Table:
    """A row per retriever and way to tell a hit, a column per N."""
    found = {name: {p.n: p.estimate for p in points} for name, points in curves.items()}
    names = plain("Retriever", list(found), numeric=False)
    ns = sorted({n for points in found.values() for n in points})
    return measured([names, *(Column(f"Recall@{n}", [share(points.get(n)) for points in found.values()]) for n in ns)])


def iterations(rows: list[Iteration], colours: dict[str, str]) -> Table:
    """What each iteration sampled and made into lists."""
    hashes = [Cell(it.data_hash[:8], hover=it.data_hash, code=True) for it in rows]
    return measured(
        [
            named("Iteration", [it.name for it in rows], colours),
            plain("Starts from", [f"policy {it.previous}" for it in rows], numeric=False),
            plain("Temperatures", [", ".join(map(str, it.temperatures)) for it in rows], numeric=False),
            plain("Prompts", [it.prompts for it in rows]),
            plain("Responses", [len(it.rewards) for it in rows]),
            plain(
                "Mean reward",
                [it.rewards.mean() if len(it.rewards) else None for it in rows],
                lambda v: number(v, ".3f"),
            ),
            plain("Correct", [it.correct for it in rows], percent),
            plain("Lists", [it.lists for it in rows]),
            plain("Rows in lists", [it.list_rows for it in rows]),
            Column("Data hash", hashes, numeric=False),
        ]
    )


def same_model(rows: list[Iteration], colours: dict[str, str]) -> Table:
    """Whether the model that was sampled is the one that was trained, and whether it moved."""

    def apart(drift: dict[str, float] | None) -> Cell | None:
        return drift and Cell(number(drift["mean"], ".1e"), f"at most {number(drift['largest'], '.1e')}")

    small = lambda v: number(v, ".1e")  # noqa: E731
    return measured(
        [
            named("Iteration", [it.name for it in rows], colours),
            plain("First loss", [it.step0_loss for it in rows], lambda v: number(v, ".6f")),
            plain("Expected", [it.step0_expected for it in rows], lambda v: number(v, ".6f")),
            Column("Drift", [apart(it.drift) for it in rows]),
            plain("Exactness, reference", [it.exactness.get("reference") for it in rows], small),
            plain("Exactness, training", [it.exactness.get("train") for it in rows], small),
            plain("Weights changed", [it.weights_changed for it in rows], percent),
            plain("Computed", [it.computed for it in rows], numeric=False),
        ]
    )


def hardness(iterations: list[Iteration], colours: dict[str, str]) -> Table:
    rows = [(it.name, h) for it in iterations for h in it.hardness]
    given = [h.temperature for _, h in rows]
    several = any(t is not None for t in given)
    temperatures = ["all" if t is None else number(t) for t in given] if several else given
    return measured(
        [
            named("Iteration", [name for name, _ in rows], colours),
            plain("Negatives answer", [NEGATIVES[h.source] for _, h in rows], numeric=False),
            plain("Temperature", temperatures),
            plain("Lists", [h.lists for _, h in rows]),
            plain("Negatives", [h.negatives for _, h in rows]),
            Column("Token overlap", [quantity(h.overlap) for _, h in rows]),
            Column("Log-prob gap", [quantity(h.gap) for _, h in rows]),
            Column("Gap per token", [quantity(h.gap_per_token) for _, h in rows]),
        ]
    )


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """A tree as (dotted key, value) in its own order; lists and empty mappings stay one value."""
    if not isinstance(tree, dict) or not tree:
        return [(prefix, tree)]
    return [pair for k, v in tree.items() for pair in flatten(v, f"{prefix}.{k}" if prefix else str(k))]


def notes(manifest: dict[str, Any]) -> str:
    """What a node counted and measured besides its rows, as `lists 48, window 0, 1`."""
    found = flatten({k: v for k, v in (manifest.get("notes") or {}).items() if k not in ELSEWHERE})
    said = {
        key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in found if v not in (None, {}, [], "")
    }
    return "; ".join(
        f"{key.replace('_', ' ')} {number(value, '.4g') if isinstance(value, float) else value}"
        for key, value in said.items()
    )


def nodes(records: list[NodeRecord]) -> Table:
    """Every node: what it made, how long it took, the rows it read, wrote and dropped, what else it counted."""
    ran = [(node, node.manifest or {}) for node in records]

    def told(head: str, value: Callable[[dict[str, Any]], Any], numeric: bool = True) -> Column:
        return plain(head, [value(m) or None if m else None for _, m in ran], numeric=numeric)

    def rows(manifest: dict[str, Any], key: str) -> Any:
        found = (manifest.get("rows") or {}).get(key)
        return str(found) if isinstance(found, int) else found

    def dropped(manifest: dict[str, Any]) -> str:
        return ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in (rows(manifest, "dropped") or {}).items())

    hashes = [
        Cell(
            " ".join(h[:8] for h in m["outputs"].values()),
            hover="\n".join(f"{p}: {h}" for p, h in m["outputs"].items()),
            code=True,
        )
        if m
        else Cell("no manifest")
        for _, m in ran
    ]
    return measured(
        [
            plain("Node", [node.stage for node, _ in ran], numeric=False),
            Column("Output hash", hashes, numeric=False),
            told("Time", lambda m: duration(m["seconds"]) + (", resumed" if m.get("resumed") else "")),
            told("Rows in", lambda m: rows(m, "in")),
            told("Rows out", lambda m: rows(m, "out")),
            told("Rows dropped", dropped, numeric=False),
            told("Noted", notes, numeric=False),
        ]
    )
