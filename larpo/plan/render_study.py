"""A study's plan as text and as JSON."""

import dataclasses
from typing import Any

from larpo.plan.plans import Totals
from larpo.plan.render import MARK, count, dollars, failures_first, hours, render_plan, table, to_json, verdict
from larpo.plan.study import StudyPlan

COLUMNS = ("cell", "nodes", "GPU hours", "clock hours", "sample", "train", "judge calls", "judge cost", "checks failed")
KEPT = COLUMNS[1:-1]


def _numbers(t: Totals) -> tuple[str, ...]:
    more = f" + {t.unknown}?" if t.unknown else ""
    return (
        str(t.nodes),
        hours(t.hours) + more,
        hours(t.clock_hours) + more,
        count(t.sample_tokens),
        count(t.train_tokens),
        count(t.judge_calls),
        dollars(t.judge_cost),
    )


def _of_cells(found: StudyPlan, names: list[str]) -> str:
    """Which cells, in the shorter way; nothing where it is all of them."""
    others = [cell.name for cell in found.cells if cell.name not in names]
    if not others:
        return ""
    return f"[all but {', '.join(others)}]" if len(others) < len(names) else f"[{', '.join(names)}]"


def render_study(found: StudyPlan, formulas: bool = False) -> str:
    """What is needed, the first cell's plan, a row per cell, sums over all runs, checks of all cells."""
    study, a, first = found.study, found.assumptions, found.cells[0]
    laid = f", with {', '.join(found.overlays)}" if found.overlays else ""
    lines = [
        f"Study {study.name} at scale {found.scale}{laid}: {len(found.cells)} cells · {found.seeds} seeds = "
        f"{found.runs} runs, on {a.gpus} GPU(s) of {a.gpu_memory_gib:g} GiB. Estimates: nothing was run, fetched or "
        "written.",
        "",
        "Needed",
    ]
    rows = [(n.kind, n.name, n.source, n.key, _of_cells(found, names)) for n, names in found.needs]
    lines += [f"  {line}" for line in table(rows, left=5)] if rows else ["  nothing"]
    if missing := [need.name for need, _ in found.needs if need.missing]:
        lines.append(f"  to be supplied here before a run: {', '.join(dict.fromkeys(missing))}")
    lines += ["", f"First cell: {first.name} ({first.label}), seed {study.scales[found.scale].rule.first_seed}", ""]
    lines += [f"  {line}".rstrip() for line in render_plan(first.plan, formulas).splitlines()[2:-2]]
    lines += ["", "Cells, one run of each"]
    cells = [(cell.name, *_numbers(cell.plan.totals), str(len(cell.plan.failed))) for cell in found.cells]
    lines += [f"  {line}" for line in table([COLUMNS, *cells], left=1)]
    lines += [f"  {c.name}: the same run as {c.same_as}" for c in found.cells if c.same_as]
    lines += ["", f"Totals over {found.runs} runs"]
    sums = [("every run by itself", *_numbers(found.apart)), ("equal nodes once", *_numbers(found.shared))]
    lines += [f"  {line}" for line in table([("", *KEPT), *sums], left=1)]
    if found.shared.unknown:
        lines.append("  + n?: and n nodes for which a number is not known; a cell's formulas say how to give it")
    lines += ["", "Checks, over all cells"]
    cells_of = dict(found.checks)
    for check in failures_first(cells_of):
        lines.append(f"  {MARK[check.ok]} {check.line} {_of_cells(found, cells_of[check])}".rstrip())
    return "\n".join([*lines, "", verdict(cells_of)]) + "\n"


def render_overview(studies: list[StudyPlan]) -> str:
    """A Markdown table with a row per study, and all of them where they share what is equal across studies too."""
    head = ("study", "runs", "nodes", "GPU hours", "clock hours", "judge calls", "judge cost", "checks failed")
    rows = [head, ("---", *["--:"] * (len(head) - 1))]

    def row(name: str, runs: int, t: Totals, failed: int) -> tuple[str, ...]:
        more = f" + {t.unknown}?" if t.unknown else ""
        work = f"{t.nodes:,}", f"{t.hours:,.1f}{more}", f"{t.clock_hours:,.1f}{more}"
        return name, str(runs), *work, f"{t.judge_calls:,.0f}", dollars(t.judge_cost), str(failed)

    rows += [row(s.study.name, s.runs, s.shared, len(s.failed)) for s in studies]
    once = {key: node for s in studies for key, node in s.once.items()}
    rows.append(row("all", sum(s.runs for s in studies), Totals.of(once.values()), sum(len(s.failed) for s in studies)))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def study_json(found: StudyPlan) -> dict[str, Any]:
    """The plan as a tree that `json.dumps` takes; the first cell's in full."""
    return {
        "study": found.study.name,
        "scale": found.scale,
        "seeds": found.seeds,
        "runs": found.runs,
        "overlays": list(found.overlays),
        "needs": [dataclasses.asdict(need) | {"cells": names} for need, names in found.needs],
        "first_cell": {"name": found.cells[0].name, **to_json(found.cells[0].plan)},
        "cells": [
            {"name": c.name, "label": c.label, "same_as": c.same_as, **dataclasses.asdict(c.plan.totals)}
            | {"failed": c.plan.failed}
            for c in found.cells
        ],
        "totals": {
            "every_run_by_itself": dataclasses.asdict(found.apart),
            "equal_nodes_once": dataclasses.asdict(found.shared),
        },
        "checks": [dataclasses.asdict(check) | {"cells": names} for check, names in found.checks],
        "failed": found.failed,
    }
