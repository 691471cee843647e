"""The commands `larpo plan` and `larpo study`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from larpo.errors import UserError

if TYPE_CHECKING:
    from larpo.plan import Assumptions
    from larpo.plan.study import StudyPlan

STUDIES = "studies"


def plan(
    params: Path = typer.Option(Path("params.yaml"), help="the parameters to plan for"),
    overlay: list[Path] = typer.Option([], "--with", help="sections laid over them (configs/params-8x80gb.yaml)"),
    gpus: int = typer.Option(1, min=1, help="GPUs at hand"),
    gpu_memory: float = typer.Option(80, min=1, help="GiB of each"),
    assume: list[str] = typer.Option([], help="NAME=VALUE, an assumption to replace; repeat for more"),
    calibrate: bool = typer.Option(False, "--calibrate", help="measure this machine first, about a minute"),
    formulas: bool = typer.Option(False, "--formulas", help="show where every number comes from"),
    as_json: bool = typer.Option(False, "--json", help="print JSON"),
) -> None:
    """What a run will need: memory, tokens, GPU hours, judges; exit code 1 where something does not fit."""
    from larpo.plan import Assumptions, build_plan, load_with, render_plan, to_json

    wanted, assumptions = load_with(params, overlay), Assumptions(gpus=gpus, gpu_memory_gib=gpu_memory)
    if calibrate:
        from larpo.plan.calibrate import calibrated

        assumptions = calibrated(wanted, assumptions)
    made = build_plan(wanted, assumptions.override(assume), str(params))
    print(json.dumps(to_json(made), indent=1, ensure_ascii=False) if as_json else render_plan(made, formulas), end="")
    raise typer.Exit(1 if made.failed else 0)


def study_command(find_project: Callable[[], Path], run: Callable[..., dict[str, str]]) -> Callable[..., None]:
    """The command `larpo study`; `run` takes name, scale, seeds, jobs, overlays, until_decided and returns the
    findings' verdicts."""

    def study(
        name: str = typer.Argument(
            help="a file in studies/, without .yaml; `list` names them; `all`: one after another"
        ),
        scale: str = typer.Option("cpu", help="cpu: small enough for two cores; paper: the paper's models and data"),
        seeds: int = typer.Option(None, help="so many; default: look by look, as the study declares"),
        jobs: int = typer.Option(None, help="runs side by side; default: one per core at scale cpu, else one"),
        overlay: list[Path] = typer.Option(
            [], "--with", help="sections laid over the base (configs/params-8x80gb.yaml)"
        ),
        until_decided: bool = typer.Option(
            False, "--until-decided", help="judge by an e-value, and add seeds until it decides (at most --seeds)"
        ),
        dry_run: bool = typer.Option(
            False, "--dry-run", help="run nothing: print what the study will need, as `plan` does"
        ),
        gpus: int = typer.Option(None, min=1, help="dry run: GPUs at hand; default 1"),
        gpu_memory: float = typer.Option(None, min=1, help="dry run: GiB of each; default 80"),
        assume: list[str] = typer.Option([], help="dry run: NAME=VALUE, an assumption to replace; repeat for more"),
        formulas: bool = typer.Option(
            False, "--formulas", help="dry run: show where every number of the first cell comes from"
        ),
        as_json: bool = typer.Option(False, "--json", help="dry run: print JSON"),
    ) -> None:
        """A table or figure of the paper: runs what is missing of it, writes its page, prints the verdicts.

        With --dry-run: exit code 1 where something does not fit.
        """
        from larpo.plan import Assumptions
        from larpo.studies.expand import load_study, names

        project = find_project()
        if name == "list":
            for study in names(project / STUDIES):
                print(f"{study:12} {load_study(project / STUDIES, study).title}")
            return
        if dry_run:
            assumptions = Assumptions(gpus=gpus or 1, gpu_memory_gib=gpu_memory or 80).override(assume)
            plans = plan_studies(project, name, scale, seeds, overlay, assumptions)
            print_plans(plans, name == "all", formulas, as_json)
            raise typer.Exit(1 if any(one.failed for one in plans) else 0)
        if gpus or gpu_memory or assume or as_json or formulas:
            raise UserError(
                "larpo study: --gpus, --gpu-memory, --assume, --formulas and --json plan only; add --dry-run"
            )
        failed = []
        for one in studies_named(project, name, scale):
            try:
                found = run(one, scale, seeds, jobs, [str(file) for file in overlay], until_decided)
            except typer.Exit as end:
                if end.exit_code != 1:  # stopped
                    raise
                failed.append(one)  # named on stderr; its finished runs are kept, and the other studies can go on
                continue
            for finding, verdict in found.items():
                print(f"{finding}: {verdict}")
            print(f"report/studies/{one}-{scale}.html")
        raise typer.Exit(1 if failed else 0)

    return study


def plan_studies(
    project: Path, name: str, scale: str, seeds: int | None, overlays: list[Path], assumptions: Assumptions
) -> list[StudyPlan]:
    """The plan of one study, or of each that has the scale (`all`)."""
    from larpo.plan.study import plan_study

    chosen = studies_named(project, name, scale)
    return [plan_study(project, n, scale, seeds, overlays, assumptions) for n in chosen]


def studies_named(project: Path, name: str, scale: str) -> list[str]:
    """One study, or each that has the scale (`all`)."""
    from larpo.studies.expand import load_study, names

    if name != "all":
        return [name]
    return [n for n in names(project / STUDIES) if scale in load_study(project / STUDIES, n).scales]


def print_plans(plans: list[StudyPlan], overview: bool, formulas: bool, as_json: bool) -> None:
    from larpo.plan.render_study import render_overview, render_study, study_json

    if as_json:
        trees = [study_json(one) for one in plans]
        print(json.dumps(trees if overview else trees[0], indent=1, ensure_ascii=False))
    else:
        print(render_overview(plans) if overview else render_study(plans[0], formulas), end="")
