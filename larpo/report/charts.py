"""The report's charts as static SVG (Vega-Lite, drawn by vl-convert): no script, no network, same bytes.

A colour is a policy, everywhere; what is no policy has the colour of the text and is told apart by its dashes. Colours
are middle tones that read on light and on dark paper; text and axes take the page's colours by CSS. Charts are as wide
as a telephone, so that nowhere their text is smaller than it is drawn.
"""

import colorsys
import re
from collections.abc import Iterable

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from markupsafe import Markup

from larpo.config.params import policy_key
from larpo.report.data import BenchmarkScores, BestOfN, Iteration, RecallPoint, Spread, histogram

WIDTH, HEIGHT = 270, 180
INK = "currentColor"  # the page's text
REWARD = "reward of the pick"
POINTS = 400  # a longer training curve is averaged down to so many points
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 1])
MEASURES = 4  # that the chart of a benchmark's scores has room for
_POLICY_COLOURS = ["#8a8d93", "#3f7fbf", "#c8702a", "#2f9a76", "#9a62b0", "#c5525e", "#8a8f1f", "#1f9aa6"]
METRICS = {
    "loss": ("Loss", "Objective per list; it should fall from the value of an untrained step."),
    "reward_accuracy": (
        "Pairs in order",
        "Share of pairs that the policy orders as the reward does; higher is better.",
    ),
    "margin": ("Margin, nats", "Gain in log-probability of a list's best response over its worst; it should rise."),
    "grad_norm": ("Gradient norm", "Norm before clipping; steady is good, spikes are not."),
    "learning_rate": ("Learning rate", "The schedule as it was applied."),
}


def policy_colours(policies: Iterable[str]) -> dict[str, str]:
    """A colour per policy, the same in every chart; iteration s has the colour of the policy it makes."""
    names = sorted(set(policies), key=policy_key)
    if len(names) <= len(_POLICY_COLOURS):
        return dict(zip(names, _POLICY_COLOURS, strict=False))
    hues = [colorsys.hls_to_rgb(i / len(names), 0.5, 0.45) for i in range(len(names))]
    return {n: "#" + "".join(f"{round(255 * c):02x}" for c in rgb) for n, rgb in zip(names, hues, strict=True)}


def svg(chart: alt.Chart | alt.LayerChart | alt.VConcatChart, name: str) -> Markup:
    """Draw a chart. `name` keeps its inner ids apart from those of other charts on the page."""
    words = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    words |= {"labelColor": "#666", "titleColor": "#666"}
    axis = alt.AxisConfig(
        gridColor="#888", gridOpacity=0.22, domainColor="#888", tickColor="#888", titlePadding=8, **words
    )
    places = {
        "orient": "top",
        "direction": "horizontal",
        "titleOrient": "left",
        "titlePadding": 12,
        "columnPadding": 12,
        "columns": 6,
    }
    legend = alt.LegendConfig(symbolStrokeWidth=3, **places, **words)
    chart = chart.properties(background="transparent").configure(
        font="sans-serif",
        view=alt.ViewConfig(stroke=None),
        axis=axis,
        axisX=alt.AxisConfig(grid=False, labelAngle=0),
        legend=legend,
    )
    text = vl_convert.vegalite_to_svg(chart.to_dict())
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    width, height = re.search(r'<svg[^>]*? width="([\d.]+)" height="([\d.]+)"', text).groups()
    if "viewBox" not in text:
        text = text.replace("<svg ", f'<svg viewBox="0 0 {width} {height}" ', 1)
    return Markup(text)  # made by vl-convert, which escapes the names it draws


def _colours(colours: dict[str, str], title: str | None, column: str = "group") -> alt.Color:
    """Names in this order, each in its colour."""
    legend, scale = alt.Legend(symbolOpacity=1), alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color(f"{column}:N", title=title, sort=list(colours), legend=legend, scale=scale)


def _dashes(names: list[str], colour: str = INK) -> alt.StrokeDash:
    """Names in this order, each with dashes of its own and a line of the legend."""
    symbol = {"symbolType": "stroke", "symbolStrokeColor": colour, "symbolSize": 500, "symbolOpacity": 1}
    legend = alt.Legend(columns=1, labelLimit=0, **symbol)
    scale = alt.Scale(domain=names, range=[DASHES[i % len(DASHES)] for i in range(len(names))])
    return alt.StrokeDash("group:N", title=None, sort=names, legend=legend, scale=scale)


def bounded(base: alt.Chart) -> alt.Chart:
    """Of rows with `low` and `high` those that have both."""
    return base.transform_filter("isValid(datum.low) && isValid(datum.high)")


def _curves(
    base: alt.Chart, groups: alt.Color | alt.StrokeDash, value: alt.Y, low: alt.Y, colour: str = INK, dots: bool = True
) -> alt.LayerChart:
    """A line with its band per group. Dashes are the line's alone: a legend shows none of what is filled."""
    filled = base.encode(alt.Detail("group:N") if isinstance(groups, alt.StrokeDash) else groups)
    layers = [_band(filled, low, colour), base.mark_line(strokeWidth=2, color=colour).encode(groups, y=value)]
    if dots:
        layers.append(filled.mark_circle(size=26, color=colour, opacity=1).encode(y=value))
    return alt.layer(*layers)


def _band(base: alt.Chart, low: alt.Y, colour: str = INK) -> alt.Chart:
    return bounded(base).mark_area(opacity=0.13, color=colour).encode(y=low, y2="high:Q")


def scores(bench: BenchmarkScores, colours: dict[str, str], name: str) -> Markup | None:
    """Every measure of a benchmark, side by side for each policy, with 95 % intervals."""
    measures = bench.measures()[:MEASURES]
    rows = [
        {"policy": p.policy, "measure": m, "value": e.value, "low": e.bounds()[0], "high": e.bounds()[1]}
        for p in bench.policies
        for m, e in p.measures().items()
        if m in measures
    ]
    if not rows:
        return None
    order = [p.policy for p in bench.policies]
    words = alt.Axis(labelLimit=WIDTH / len(measures), labelExpr="split(datum.label, ' ')", ticks=False)
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("measure:N", sort=measures, title=None, axis=words),
        xOffset=alt.XOffset("policy:N", sort=order, scale=alt.Scale(paddingOuter=0.7)),
        color=_colours({p: colours[p] for p in order}, "policy", "policy"),
    )
    title = "share of items"
    value = alt.Y("value:Q", title=title, axis=alt.Axis(format=".0%", tickCount=5), scale=alt.Scale(zero=True))
    layers = [
        bounded(base).mark_rule(strokeWidth=2.5).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=value),
    ]
    return svg(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), name)


def recall(bench: BenchmarkScores, colours: dict[str, str], name: str) -> Markup | None:
    """Recall@N against N, one curve per policy, with 95 % bands."""
    curves = {p.policy: p.recall for p in bench.policies if p.recall}
    return _recall(curves, _colours({p: colours[p] for p in curves}, "policy"), "N, samples per item", name)


def retrieval(curves: dict[str, list[RecallPoint]], name: str) -> Markup | None:
    """Recall@N against N, one curve per retriever and way to tell a hit, with 95 % bands."""
    return _recall(curves, _dashes(list(curves)), "N, passages per query", name)


def _recall(
    curves: dict[str, list[RecallPoint]], groups: alt.Color | alt.StrokeDash, title: str, name: str
) -> Markup | None:
    rows = [
        {"group": group, "n": r.n, "value": r.estimate.value}
        | dict(zip(("low", "high"), r.estimate.bounds(), strict=True))
        for group, points in curves.items()
        for r in points
    ]
    if not rows:
        return None
    largest = max(r["n"] for r in rows)
    if largest <= 16:
        scale, ticks = alt.Scale(nice=False, zero=False), list(range(1, largest + 1))
    else:
        scale, ticks = alt.Scale(type="log", base=2, nice=False), [2**i for i in range(32) if 2**i <= largest]
    base = alt.Chart(pd.DataFrame(rows)).encode(
        alt.X("n:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, format="d"))
    )
    value = alt.Y("value:Q", title="Recall@N", axis=alt.Axis(format=".0%"), scale=alt.Scale(zero=True))
    chart = _curves(base, groups, value, alt.Y("low:Q", title="Recall@N"), dots=largest <= 16)
    return svg(chart.properties(width=WIDTH, height=HEIGHT), name)


def best_of_n(best: BestOfN, colour: str, name: str) -> Markup | None:
    """Above the true score of what the reward picks among N and the best there is, below the picks' reward."""
    curves = {"picked by the reward": best.score, "best of N": best.upper, REWARD: best.rewards}
    rows = [
        {"n": p.n, "group": group, "value": p.estimate.value, "low": p.estimate.low, "high": p.estimate.high}
        for group, points in curves.items()
        for p in points
    ]
    if not rows:
        return None
    scale, ticks = alt.Scale(type="log", base=2, nice=False), sorted({r["n"] for r in rows})
    base = alt.Chart(pd.DataFrame(rows)).encode(
        alt.X("n:Q", title="N, samples per item", scale=scale, axis=alt.Axis(values=ticks, format="d"))
    )

    def panel(keep: str, title: str) -> alt.LayerChart:
        part = base.transform_filter(keep)
        low, value = (alt.Y(f"{name}:Q", title=title, scale=alt.Scale(zero=False)) for name in ("low", "value"))
        drawn = _curves(part, _dashes(list(curves), colour), value, low, colour)
        return drawn.properties(width=WIDTH, height=HEIGHT / 2)

    panels = panel(f"datum.group != '{REWARD}'", "true score"), panel(f"datum.group == '{REWARD}'", REWARD)
    return svg(alt.vconcat(*panels), name)


def _thin(curve: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most POINTS means of neighbouring steps."""
    if len(curve) <= POINTS:
        return curve
    return [tuple(part.mean(axis=0)) for part in np.array_split(np.asarray(curve, dtype=float), POINTS)]


def training(iterations: list[Iteration], metric: str, colours: dict[str, str], name: str) -> Markup | None:
    """One training metric against the optimizer step, a line per iteration."""
    curves = {it.name: _thin(it.training.get(metric, [])) for it in iterations}
    rows = [{"group": key, "step": step, "value": value} for key, curve in curves.items() for step, value in curve]
    if not rows:
        return None
    longest = max(map(len, curves.values()))
    first, last = (int(of(row["step"] for row in rows)) for of in (min, max))
    axis = alt.Axis(format="d", **({"values": list(range(first, last + 1))} if last - first < 8 else {}))
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(strokeWidth=1.6, point=alt.OverlayMarkDef(size=22) if longest <= 24 else False)
        .encode(
            x=alt.X("step:Q", title="optimizer step", axis=axis, scale=alt.Scale(zero=False)),
            y=alt.Y("value:Q", title=METRICS.get(metric, (metric,))[0], scale=alt.Scale(zero=False)),
            color=_colours({k: colours[k] for k, curve in curves.items() if curve}, "iteration"),
        )
    )
    return svg(chart.properties(width=WIDTH, height=HEIGHT), name)


def lengths(spreads: dict[str, Spread | None], label: str, colours: dict[str, str], name: str) -> Markup | None:
    """Percentiles of response lengths: line 5 to 95 %, bar 25 to 75 %, tick at the median."""
    rows = [{"group": key, **vars(s)} for key, s in spreads.items() if s is not None]
    if not rows:
        return None
    order = [r["group"] for r in rows]
    base = alt.Chart(pd.DataFrame(rows)).encode(
        y=alt.Y("group:N", sort=order, title=label),
        color=alt.Color("group:N", legend=None, scale=alt.Scale(domain=order, range=[colours[g] for g in order])),
    )
    x = alt.X("p5:Q", title="tokens per response", scale=alt.Scale(zero=True), axis=alt.Axis(grid=True, tickCount=5))
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.5).encode(x=x, x2="p95:Q"),
        base.mark_bar(height=11, opacity=0.45).encode(x="p25:Q", x2="p75:Q"),
        base.mark_tick(thickness=3, height=17).encode(x="p50:Q"),
    )
    return svg(chart.properties(width=WIDTH, height=34 * len(rows)), name)


def rewards(iterations: list[Iteration], colours: dict[str, str], name: str) -> dict[str, Markup]:
    """A histogram of rewards per iteration, all with the same bins and the same height."""
    labels, shares = histogram([it.rewards for it in iterations])
    top = max((float(s.max()) for s in shares if s.size), default=1.0)
    charts = {}
    for it, share in zip(iterations, shares, strict=True):
        if not len(it.rewards):
            continue
        axis, scale = alt.Axis(format=".0%", tickCount=4), alt.Scale(domain=[0, top])
        turned = alt.Axis(labelAngle=-60 if len(labels) > 6 else 0)
        chart = (
            alt.Chart(pd.DataFrame({"reward": labels, "share": share}))
            .mark_bar(color=colours[it.name], opacity=0.8)
            .encode(
                x=alt.X("reward:N", sort=labels, title="reward", axis=turned),
                y=alt.Y("share:Q", title="share of responses", axis=axis, scale=scale),
            )
        )
        charts[it.name] = svg(chart.properties(width=WIDTH, height=140), f"{name}-{it.name}")
    return charts
