"""The report's page: numbers as words, charts in place, everything a model wrote escaped."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from larpo.report import charts
from larpo.report.data import BenchmarkScores, Estimate, NodeRecord, PolicyScore, ReportData
from larpo.report.picture import draw_graph, duration

NONE = "–"


def percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def interval(estimate: Estimate | None) -> str:
    """`[31.2, 38.9]` in percent, empty without an interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def span(estimate: Estimate, form: str = ".2f") -> str:
    """`[−1.20, 3.40]`, empty without an interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low, form)}, {number(estimate.high, form)}]"


def number(value: float | None, form: str = ".3g") -> str:
    return NONE if value is None else f"{value:{form}}".replace("-", "−")


def comparison(bench: BenchmarkScores) -> list[str]:
    """One sentence per measure: the first policy against the last, and whether the intervals lie apart."""
    if len(bench.policies) < 2:
        return []
    first, last = bench.policies[0], bench.policies[-1]
    out = []
    for name, a, b in (
        ("Greedy accuracy", first.greedy, last.greedy),
        ("Pass@1", first.passes.get(1), last.passes.get(1)),
    ):
        if a is None or b is None:
            continue
        line = f"{name}: {percent(a.value)} (policy {first.policy}) → {percent(b.value)} (policy {last.policy})"
        if None not in (a.low, a.high, b.low, b.high):
            apart = a.high < b.low or b.high < a.low
            line += "; the 95 % intervals " + ("lie apart" if apart else "overlap")
        out.append(line + ".")
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


def environment(nodes: list[NodeRecord]) -> list[tuple[str, str, str]]:
    """(what, value, nodes) of commit, hardware and package versions, from the manifests."""
    rows = [("Git commit", *pair) for pair in grouped(nodes, _git)]
    rows += [("Hardware", *pair) for pair in grouped(nodes, _hardware)]
    packages = sorted({p for n in nodes for p in (n.manifest or {}).get("packages", {})})
    for package in packages:
        rows += [(package, *pair) for pair in grouped(nodes, lambda m, p=package: (m.get("packages") or {}).get(p))]
    return rows


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted key, value) in their own order; lists and empty mappings stay one value."""
    if not isinstance(tree, dict) or not tree:
        return [(prefix, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]
    return [pair for k, v in tree.items() for pair in flatten(v, f"{prefix}.{k}" if prefix else str(k))]


def _score_notes(p: PolicyScore) -> str:
    if p.samples is None:
        how = f"sampled at temperature {number(p.temperature)}" if p.temperature else "greedy"
        return f"{p.items or NONE} items, one output each, {how}"
    sampled = "each" if p.sampled_items in (None, p.items) else f"for {p.sampled_items} of them"
    return f"{p.items or NONE} items, {p.samples} samples {sampled} at temperature {number(p.temperature)}"


def render(data: ReportData) -> str:
    """The whole page as one HTML document without any external reference."""
    names = [p.policy for b in data.benchmarks for p in b.policies]
    colours = charts.policy_colours(["0", *names, *(it.name for it in data.iterations)])
    metrics = [m for m in charts.METRICS if any(it.training.get(m) for it in data.iterations)]
    metrics += sorted({m for it in data.iterations for m in it.training if m not in charts.METRICS})
    env = Environment(
        loader=PackageLoader("larpo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(percent=percent, interval=interval, number=number, span=span, duration=duration)
    return env.get_template("page.html.j2").render(
        data=data,
        colours=colours,
        comparison=comparison,
        notes=_score_notes,
        score_charts=[(b, charts.scores(b, f"scores{i}")) for i, b in enumerate(data.benchmarks)],
        recall_charts=[(b, charts.recall(b, colours, f"recall{i}")) for i, b in enumerate(data.benchmarks)],
        best_of_n_charts=[(b, charts.best_of_n(b, f"best{i}")) for i, b in enumerate(data.best_of_n)],
        retrieval_chart=charts.retrieval({k: v for k, v in data.retrieval.items() if v}, "retrieval"),
        training_charts=[
            (m, *charts.METRICS.get(m, (m, "")), charts.training(data.iterations, m, colours, f"training{i}"))
            for i, m in enumerate(metrics)
        ],
        length_charts=[
            (
                "Training responses, per iteration",
                charts.lengths({it.name: it.lengths for it in data.iterations}, "iteration", colours, "lengths"),
            ),
            *(
                (
                    f"Benchmark {b.name}, per policy",
                    charts.lengths({p.policy: p.lengths for p in b.policies}, "policy", colours, f"lengths{i}"),
                )
                for i, b in enumerate(data.benchmarks)
            ),
        ],
        reward_charts=charts.rewards(data.iterations, colours, "rewards"),
        graph=draw_graph(data.nodes, data.columns, colours),
        seconds=sum(n.manifest["seconds"] for n in data.nodes if n.manifest),
        settings=[(section, flatten(value)) for section, value in data.settings.items()],
        environment=environment(data.nodes),
    )
