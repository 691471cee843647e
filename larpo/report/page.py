"""The report's page: numbers as words, charts in place, everything a model wrote escaped."""

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from larpo.report import cells, charts
from larpo.report.cells import flatten, number, percent
from larpo.report.data import BenchmarkScores, Iteration, NodeRecord, ReportData
from larpo.report.picture import draw_graph, duration

LENGTHS = "Tick: median; bar: middle half; line: 5 to 95 %. Good is no drift towards the limit while scores rise."


def comparison(bench: BenchmarkScores) -> list[str]:
    """A sentence for each of the two foremost measures: the first policy against the last, and whether their intervals
    lie apart."""
    if len(bench.policies) < 2:
        return []
    first, last = bench.policies[0], bench.policies[-1]
    out = []
    for name in bench.measures()[:2]:
        a, b = first.measures().get(name), last.measures().get(name)
        if a is None or b is None:
            continue
        line = f"{name}: {percent(a.value)} (policy {first.policy}) → {percent(b.value)} (policy {last.policy})"
        if None not in (a.low, a.high, b.low, b.high):
            apart = a.high < b.low or b.high < a.low
            line += "; the 95 % intervals " + ("lie apart" if apart else "overlap")
        out.append(f"{line[0].upper()}{line[1:]}.")
    return out


def grouped(nodes: list[NodeRecord], pick) -> list[tuple[str, str]]:
    """(value, nodes that have it) over all manifests, most nodes first; `pick` returns None for no value."""
    found: dict[str, list[str]] = {}
    having = [n for n in nodes if n.manifest is not None]
    for node in having:
        if (value := pick(node.manifest)) is not None:
            found.setdefault(value, []).append(node.stage)
    return [
        (value, "every node" if len(stages) == len(having) else ", ".join(stages))
        for value, stages in sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    ]


def _git(manifest: dict[str, Any]) -> str | None:
    state = manifest.get("git") or {}
    if not state.get("commit"):
        return None
    return state["commit"] + (", with uncommitted changes" if state.get("dirty") else "")


def _hardware(manifest: dict[str, Any]) -> str | None:
    facts = manifest.get("hardware")
    if not facts:
        return None
    parts = [facts.get("cpu") or facts.get("machine"), f"{facts['cores']} cores" if facts.get("cores") else None]
    if facts.get("memory_bytes"):
        parts.append(f"{facts['memory_bytes'] / 2**30:.1f} GiB memory")
    parts += [", ".join(facts["gpus"]) if facts.get("gpus") else None, facts.get("system")]
    return "; ".join(p for p in parts if p)


def environment(nodes: list[NodeRecord]) -> cells.Table:
    """Commit, hardware and package versions, from the manifests, and the nodes that had them."""
    rows = [("Git commit", *pair) for pair in grouped(nodes, _git)]
    rows += [("Hardware", *pair) for pair in grouped(nodes, _hardware)]
    packages = sorted({p for n in nodes for p in (n.manifest or {}).get("packages", {})})
    for package in packages:
        rows += [(package, *pair) for pair in grouped(nodes, lambda m, p=package: (m.get("packages") or {}).get(p))]
    what, values, stages = zip(*rows, strict=True) if rows else ((), (), ())
    shown = cells.Column("Value", [cells.Cell(v, code=True) for v in values], numeric=False)
    where = [cells.plain(head, texts, numeric=False) for head, texts in (("What", what), ("Nodes", stages))]
    return cells.measured([where[0], shown, where[1]])


def settings(tree: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Section by section (dotted key, value); sections in which nothing is set are left out."""
    return [
        (section, [(k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in flatten(value)])
        for section, value in tree.items()
        if value not in (None, {}, [])
    ]


Figure = tuple[Markup | None, str, str]
"""A chart, its title, and how to read it."""


def in_rows(figures: Iterable[Figure]) -> list[list[Figure]]:
    """Charts that there are, at most three in a row, the rows as even as can be."""
    there = [f for f in figures if f[0] is not None]
    rows = max(1, math.ceil(len(there) / 3))
    ends = [math.ceil(len(there) * i / rows) for i in range(rows + 1)]
    return [there[a:b] for a, b in pairwise(ends) if b > a]


def benchmark(bench: BenchmarkScores, colours: dict[str, str], name: str) -> list[list[Figure]]:
    """The charts of one benchmark; `name` keeps their ids apart from those of others."""
    return in_rows(
        [
            (
                charts.scores(bench, colours, f"scores{name}"),
                "Scores per policy",
                "Bars are 95 % intervals; good is a rise that leaves the first policy’s intervals behind.",
            ),
            (
                charts.recall(bench, colours, f"recall{name}"),
                "Recall@N",
                "The share of items that at least one of N samples solves, with 95 % bands; good is a curve that "
                "starts higher without losing its right end.",
            ),
            (
                charts.lengths({p.policy: p.lengths for p in bench.policies}, "policy", colours, f"lengths{name}"),
                "Response lengths",
                LENGTHS,
            ),
        ]
    )


def training(iterations: list[Iteration], colours: dict[str, str]) -> list[list[Figure]]:
    """A chart per metric of the training, and the lengths of what was sampled for it."""
    names = [m for m in charts.METRICS if any(it.training.get(m) for it in iterations)]
    names += sorted({m for it in iterations for m in it.training if m not in charts.METRICS})
    figures = [
        (charts.training(iterations, m, colours, f"training{i}"), *charts.METRICS.get(m, (m, "")))
        for i, m in enumerate(names)
    ]
    spreads = charts.lengths({it.name: it.lengths for it in iterations}, "iteration", colours, "lengths")
    return in_rows([*figures, (spreads, "Lengths of the sampled responses", LENGTHS)])


def render(data: ReportData) -> str:
    """The whole page as one HTML document without any external reference."""
    names = [p.policy for b in data.benchmarks for p in b.policies]
    colours = charts.policy_colours(
        ["0", *names, *(b.policy for b in data.best_of_n), *(it.name for it in data.iterations)]
    )
    env = Environment(
        loader=PackageLoader("larpo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(number=number, duration=duration)
    retrieval = {name: points for name, points in data.retrieval.items() if points}
    rewards = charts.rewards(data.iterations, colours, "rewards")
    return env.get_template("page.html.j2").render(
        data=data,
        cells=cells,
        colours=colours,
        comparison=comparison,
        benchmarks=[(b, benchmark(b, colours, str(i))) for i, b in enumerate(data.benchmarks)],
        best_of_n=in_rows(
            (
                charts.best_of_n(b, colours[b.policy], f"best{i}"),
                f"{b.benchmark}, policy {b.policy}, under {b.reward}",
                "",
            )
            for i, b in enumerate(data.best_of_n)
        ),
        retrieval=retrieval,
        retrieval_chart=charts.retrieval(retrieval, "retrieval"),
        training=training(data.iterations, colours),
        rewards=in_rows(
            (rewards.get(it.name), f"Iteration {it.name}", f"Sampled from policy {it.previous}.")
            for it in data.iterations
        ),
        graph=draw_graph(data.nodes, data.columns, colours),
        seconds=sum(n.manifest["seconds"] for n in data.nodes if n.manifest),
        settings=settings(data.settings),
        environment=environment(data.nodes),
    )
