"""A plan as text and as JSON."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from larpo.plan.formula import Estimate, gib
from larpo.plan.plans import Check, NodePlan, Plan

Show = Callable[[float | None], str]
COLUMNS = ("node", "model", "GPUs", "memory per GPU", "sample", "train", "judge calls", "cost", "GPU hours")
MARK = {True: "ok  ", False: "FAIL", None: "note"}
SHOWN_HOURS = 0.005


def count(value: float | None) -> str:
    """12,345,678 → 12.3 M."""
    if value is None:
        return "unknown"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def hours(value: float | None) -> str:
    return "unknown" if value is None else "< 0.01" if value < SHOWN_HOURS else f"{value:.2f}"


def dollars(value: float | None) -> str:
    return "unknown price" if value is None else f"${value:,.2f}"


def _row(node: NodePlan) -> tuple[str, ...]:
    shown = {label: show(e.value) for label, e, show in _numbers(node)}
    if node.judge:
        shown |= {"judge calls": count(node.judge.calls.value), "cost": dollars(node.judge.cost.value)}
    if node.memory:
        shown["memory per GPU"] = gib(node.memory_total)
    head = (node.name, (node.model or "").rpartition("/")[2], str(node.gpus or ""))
    return (*head, *(shown.get(column, "") for column in COLUMNS[3:]))


def _numbers(node: NodePlan) -> list[tuple[str, Estimate, Show]]:
    """(column, number, how it is shown) of those that a node has."""
    numbers = (
        ("sample", node.sample_tokens, count),
        ("train", node.train_tokens, count),
        ("GPU hours", node.hours, hours),
    )
    return [(label, estimate, show) for label, estimate, show in numbers if estimate is not None]


def table(rows: list[tuple[str, ...]], left: int = 2) -> list[str]:
    """Lines with aligned columns; the first `left` of them start at the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def render_plan(plan: Plan, formulas: bool = False) -> str:
    """The plan as plain text: models, nodes, totals, where each number comes from (with `formulas`), checks, and the
    verdict last."""
    a = plan.assumptions
    lines = [f"Plan for {a.gpus} GPU(s) of {a.gpu_memory_gib:g} GiB. Estimates: nothing was run.", "", "Models"]
    for arch in plan.architectures:
        lines.append(
            f"  {arch.name}: {arch.parameters:,} parameters, {arch.layers} layers, hidden {arch.hidden:,}, "
            f"{arch.heads} heads ({arch.kv_heads} kv), vocabulary {arch.vocab:,}, {arch.max_context:,} tokens"
        )
    lines += ["", "Nodes", *(f"  {line}" for line in table([COLUMNS, *map(_row, plan.nodes)]))]
    totals = plan.totals
    lines += ["", "Totals"]
    for what, label, show in (
        ("sample_tokens", "tokens to sample", count),
        ("train_tokens", "tokens to train on", count),
        ("hours", "GPU hours", hours),
    ):
        unknown = plan.unknown(what)
        more = f", and {unknown} node(s) not known" if unknown else ""
        lines.append(f"  {label}: {show(getattr(totals, what))}{more}")
    lines.append(f"  hours on the clock, one node after another: {hours(totals.clock_hours)}")
    if any(node.judge for node in plan.nodes):
        unknown = plan.unknown("judge_cost")
        more = f", and {unknown} node(s) with an unknown price" if unknown else ""
        price = dollars(totals.judge_cost)
        lines.append(f"  judges: {price} (list prices of 2024, check before you rely on them){more}")
    if formulas:
        lines += ["", "Formulas", *_formulas(plan)]
    lines += ["", "Checks", *(f"  {MARK[c.ok]} {c.line}" for c in failures_first(plan.checks))]
    return "\n".join([*lines, "", verdict(plan.checks)]) + "\n"


def failures_first(checks: Iterable[Check]) -> list[Check]:
    """Failed checks, then what somebody should know, then what holds."""
    return sorted(checks, key=lambda check: (False, None, True).index(check.ok))


def verdict(checks: Iterable[Check]) -> str:
    """One line: whether it fits."""
    failed, notes, held = ([c for c in checks if c.ok is ok] for ok in (False, None, True))
    if failed:
        return f"Verdict: does not fit, {len(failed)} of {len(failed) + len(held)} checks failed: {failed[0].line}"
    return f"Verdict: fits, {len(held)} checks hold, {len(notes)} to note"


def _formulas(plan: Plan) -> list[str]:
    """Each number of the table with its arithmetic; nodes whose arithmetic is the same share it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for node in plan.nodes:
        lines = [f"    {name}: {gib(e.value)} = {e.formula}" for name, e in node.memory.items()]
        lines += [f"    {label}: {show(e.value)} = {e.formula}" for label, e, show in _numbers(node)]
        if node.judge:
            j = node.judge
            lines.append(f"    judge {j.judge} ({j.model}): {count(j.calls.value)} calls, {j.calls.formula}")
            lines.append(f"    prompt: {count(j.prompt.value)} tokens = {j.prompt.formula}")
            lines.append(f"    reply: {count(j.completion.value)} tokens = {j.completion.formula}")
            lines.append(f"    cost: {dollars(j.cost.value)} = {j.cost.formula}")
        lines += [f"    {note}" for note in node.notes]
        if lines:
            head = f" ({node.sharding})" if node.sharding else ""
            groups.setdefault((head, *lines), []).append(node.name)
    out = []
    for (head, *lines), names in groups.items():
        out += [f"  {', '.join(names)}{head}", *lines]
    a = plan.assumptions
    out += ["", "Assumptions (--assume NAME=VALUE)"]
    for f in dataclasses.fields(a):
        value = getattr(a, f.name)
        if f.name == "response_tokens" and value is None:
            value = "half of max_new_tokens, at most 450"
        out.append(f"  {f.name}: {value}")
    return out


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as a tree that `json.dumps` takes; estimates keep value, unit and formula."""
    tree = dataclasses.asdict(plan)
    for node, entry in zip(plan.nodes, tree["nodes"], strict=True):
        entry["memory_total"] = node.memory_total
    totals = plan.totals
    tree["totals"] = {
        "gpu_hours": totals.hours,
        "gpu_hours_unknown_nodes": plan.unknown("hours"),
        "clock_hours": totals.clock_hours,
        "sample_tokens": totals.sample_tokens,
        "train_tokens": totals.train_tokens,
        "judge_usd": totals.judge_cost,
        "judge_unknown_nodes": plan.unknown("judge_cost"),
    }
    tree["failed"] = plan.failed
    return tree
