"""A study planned before it runs: each distinct cell as one run, sums over all runs, with and without sharing.

    found = plan_study(Path("."), "table2", "paper", overlays=["configs/params-8x80gb.yaml"])
    found.shared.hours       # GPU hours when DVC runs equal nodes once
    found.failed             # lines; empty where everything fits together

Nothing asks a network, loads a model or writes a file.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from larpo.graph import keys, read_stages, select, unroll
from larpo.hashing import digest
from larpo.plan.assumptions import Assumptions
from larpo.plan.needs import Need, needs_of
from larpo.plan.planner import build_plan
from larpo.plan.plans import Check, NodePlan, Plan, Totals
from larpo.studies.expand import Run, expand, load_study, put, targets
from larpo.studies.spec import ScaleName, Study


@dataclass(frozen=True)
class CellPlan:
    """One cell with its first seed. `same_as` names the first cell with the same parameters, whose plan it shares."""

    name: str
    label: str
    plan: Plan
    same_as: str | None = None


@dataclass(frozen=True)
class StudyPlan:
    study: Study
    scale: ScaleName
    seeds: int
    overlays: tuple[str, ...]
    cells: tuple[CellPlan, ...]
    needs: tuple[tuple[Need, list[str]], ...]  # with the cells that need it
    checks: tuple[tuple[Check, list[str]], ...]  # with the cells that it is about
    apart: Totals  # every run by itself: an upper bound
    shared: Totals  # equal nodes once
    once: dict[str, NodePlan]  # those nodes by their keys, which are the same in other studies
    assumptions: Assumptions

    @property
    def runs(self) -> int:
        return len(self.cells) * self.seeds

    @property
    def failed(self) -> list[str]:
        return [check.line for check, _ in self.checks if check.ok is False]


def plan_study(
    project: Path,
    name: str,
    scale: ScaleName,
    seeds: int | None = None,
    overlays: Sequence[str | Path] = (),
    assumptions: Assumptions | None = None,
) -> StudyPlan:
    """Plan studies/NAME.yaml of `project` (the folder of dvc.yaml) at one scale.

    Raises
    ------
    UserError
        The study, an overlay or a cell's parameters are wrong. What does not fit is a failed check.
    """
    a = assumptions or Assumptions()
    study = load_study(project / "studies", name)
    runs = expand(study, project / "studies", scale, seeds, overlays)
    return plan_runs(study, scale, runs, read_stages(project / "dvc.yaml"), overlays, a)


def plan_runs(
    study: Study, scale: ScaleName, runs: list[Run], declared: dict, overlays: Sequence[str | Path], a: Assumptions
) -> StudyPlan:
    """Plan expanded runs over the stages that dvc.yaml declares."""
    kinds, seeds = targets(runs, study.sources(scale).values()), len({run.seed for run in runs})
    planned: dict[str, tuple[str, Plan, list[Need]]] = {}
    cells: list[CellPlan] = []
    everything: list[NodePlan] = []
    once: dict[str, NodePlan] = {}
    needed: dict[Need, list[str]] = {}
    checked: dict[Check, list[str]] = {}
    for run in runs:
        stages = unroll(declared, run.params)
        wanted = select(stages, kinds)
        # The seed changes no number, so a cell's first run stands for all of them, and equal cells for each other.
        identity = digest("cell", _seedless(run.params, study.scales[scale].seeded))
        if identity not in planned:
            where = f"studies/{study.name}.yaml: cells.{run.cell}"
            plan = build_plan(run.checked, a, where, [stages[name] for name in stages if name in wanted])
            planned[identity] = run.cell, _nameless(plan, where), needs_of(run.checked, plan, where)
        first, plan, needs = planned[identity]
        if not cells or cells[-1].name != run.cell:
            cells.append(CellPlan(run.cell, study.cells[run.cell].label, plan, None if first == run.cell else first))
            for need in needs:
                needed.setdefault(need, []).append(run.cell)
            for check in plan.checks:
                checked.setdefault(check, []).append(run.cell)
        everything += plan.nodes
        found = keys(stages, run.params)
        once |= {found[node.name]: node for node in plan.nodes}
    return StudyPlan(
        study,
        scale,
        seeds,
        tuple(map(str, overlays)),
        tuple(cells),
        tuple(needed.items()),
        tuple(checked.items()),
        Totals.of(everything),
        Totals.of(once.values()),
        once,
        a,
    )


def _seedless(params: dict, seeded: Sequence[str]) -> dict:
    params = copy.deepcopy(params)
    for key in ("seed", *seeded):
        put(params, key, 0, key)
    return params


def _nameless(plan: Plan, where: str) -> Plan:
    """Lines that cells have in common read alike: the cell's name is kept beside a check."""
    checks = [Check(c.ok, c.line.removeprefix(f"{where}: ")) for c in plan.checks]
    return replace(plan, checks=tuple(dict.fromkeys(checks)))
