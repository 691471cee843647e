"""The command `larpo`: what is done outside the graph."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from larpo.audit.command import audit_command, pack_command, unpack_command
from larpo.benchmarks import score_file
from larpo.errors import UserError, one_line

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="LARPO: alignment from ranked lists. The pipeline itself is `dvc repro`.",
)

app.command("audit")(audit_command)
app.command("pack")(pack_command)
app.command("unpack")(unpack_command)

SCORE_HELP = """Score outputs that exist already; prints the scores as JSON.

\b
BENCHMARK     OUTPUTS                                                        OPTIONS
gsm8k         JSON Lines with question, answer, response
math          JSON Lines with problem, answer or solution, response
alpaca_eval   annotations as AlpacaEval publishes them (JSON list with       --baseline FILE --data FILE
              instruction, output_1, output_2, preference from 1 to 2,       --df-gamed FILE
              null or NaN where there is none), in any order, all or some    --instruction-difficulty FILE
mixeval       JSON Lines with id and response, and problem_type unless the   --data FOLDER --parser rule|model
mixeval_hard  file's name says it (free-form, close_freeform, …); or a       --unparsed wrong|random --seed N
              folder with both. Rows may carry the item itself (target,      --judge-model NAME --judge-url URL
              options, …); otherwise --data names the folder that has it

Files may be JSON lists or JSON Lines, and gzipped; a null response is an empty one.
--data of mixeval: the folder with free-form.json and multiple-choice.json of the release that the ids belong to.
--data of alpaca_eval: instructions in the order of their difficulties, where they are not AlpacaEval's own 805.
Length-controlled win rates need --df-gamed (the hub's df_gamed.csv; without it, the hub itself is asked);
--instruction-difficulty replaces its column of that name. Exit code 2 with one line on bad input.
"""


@app.callback()
def main() -> None:
    """One command per verb."""


@app.command(help=SCORE_HELP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def score(
    context: typer.Context,
    benchmark: str = typer.Argument(help="a benchmark's name, see above"),
    outputs: Path = typer.Argument(help="the outputs to score"),
) -> None:
    try:
        found = score_file(benchmark, outputs, **options(context.args))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(json.dumps(found, indent=1, ensure_ascii=False))


@app.command()
def plan(
    params: Path = typer.Option(Path("params.yaml"), help="the parameters to plan for"),
    overlay: list[Path] = typer.Option([], "--with", help="sections laid over them (configs/params-8x80gb.yaml)"),
    gpus: int = typer.Option(1, min=1, help="GPUs at hand"),
    gpu_memory: float = typer.Option(80, min=1, help="GiB of each"),
    assume: list[str] = typer.Option([], help="NAME=VALUE, an assumption to replace; repeat for more"),
    formulas: bool = typer.Option(True, help="show where every number comes from"),
    as_json: bool = typer.Option(False, "--json", help="print JSON"),
) -> None:
    """What a run will need: memory, tokens, GPU hours, judges; exit code 1 where something does not fit."""
    from larpo.plan import Assumptions, build_plan, load_with, render_plan, to_json

    try:
        assumptions = Assumptions(gpus=gpus, gpu_memory_gib=gpu_memory).override(assume)
        found = build_plan(load_with(params, overlay), assumptions, str(params))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(json.dumps(to_json(found), indent=1, ensure_ascii=False) if as_json else render_plan(found, formulas), end="")
    raise typer.Exit(1 if found.failed else 0)


@app.command()
def study(
    name: str = typer.Argument(help="a file in studies/, without .yaml; `list` names them; `all`: dry run only"),
    scale: str = typer.Option("cpu", help="cpu: small enough for two cores; paper: the paper's models and data"),
    seeds: int = typer.Option(None, help="seeds 0..n-1; default: the study's own number"),
    jobs: int = typer.Option(None, help="runs side by side; default: one per core at scale cpu, else one"),
    overlay: list[Path] = typer.Option([], "--with", help="sections laid over the base (configs/params-8x80gb.yaml)"),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="run nothing: print what the study will need, as `plan` does"
    ),
    gpus: int = typer.Option(None, min=1, help="dry run: GPUs at hand; default 1"),
    gpu_memory: float = typer.Option(None, min=1, help="dry run: GiB of each; default 80"),
    assume: list[str] = typer.Option([], help="dry run: NAME=VALUE, an assumption to replace; repeat for more"),
    formulas: bool = typer.Option(True, help="dry run: show where every number of the first cell comes from"),
    as_json: bool = typer.Option(False, "--json", help="dry run: print JSON"),
) -> None:
    """A table or figure of the paper: runs what is missing of it, writes its page, prints the verdicts.

    With --dry-run: exit code 1 where something does not fit.
    """
    from larpo.workspace import project_folder

    try:
        folder = project_folder() / "studies"
        if name == "list":
            from larpo.studies.spec import load_study, names

            for found in names(folder):
                print(f"{found:10} {load_study(folder, found).title}")
            return
        if dry_run:
            raise typer.Exit(_dry_run(name, scale, seeds, overlay, gpus, gpu_memory, assume, formulas, as_json))
        if name == "all" or gpus or gpu_memory or assume or as_json or not formulas:
            raise UserError(
                "larpo study: all, --gpus, --gpu-memory, --assume, --no-formulas and --json plan only; add --dry-run"
            )
        verdicts = _run_study(name, scale, seeds, jobs, overlay)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    for finding, verdict in verdicts.items():
        print(f"{finding}: {verdict}")
    print(f"report/studies/{name}-{scale}.html")


def _run_study(name: str, scale: str, seeds: int | None, jobs: int | None, overlays: list[Path]) -> dict[str, Any]:
    """Verdicts; exit code 1 where runs failed."""
    from flows.study import run
    from flows.study_runner import StudyFailed

    try:
        return run(name, scale, seeds, jobs, [str(file) for file in overlays])
    except (StudyFailed, RuntimeError) as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None


def _dry_run(
    name: str,
    scale: str,
    seeds: int | None,
    overlays: list[Path],
    gpus: int | None,
    gpu_memory: float | None,
    assume: list[str],
    formulas: bool,
    as_json: bool,
) -> int:
    """Print the plan of a study, or a row for each of them (`all`); 1 where something does not fit."""
    from larpo.plan import Assumptions
    from larpo.plan.render_study import render_overview, render_study, study_json
    from larpo.plan.study import plan_study
    from larpo.studies.spec import load_study, names
    from larpo.workspace import project_folder

    project = project_folder()
    assumptions = Assumptions(gpus=gpus or 1, gpu_memory_gib=gpu_memory or 80).override(assume)
    wanted = [name]
    if name == "all":
        folder = project / "studies"
        wanted = [n for n in names(folder) if scale in load_study(folder, n).scales]
    found = [plan_study(project, n, scale, seeds, overlays, assumptions) for n in wanted]
    if as_json:
        trees = [study_json(one) for one in found]
        print(json.dumps(trees if name == "all" else trees[0], indent=1, ensure_ascii=False))
    else:
        print(render_overview(found) if name == "all" else render_study(found[0], formulas), end="")
    return 1 if any(one.failed for one in found) else 0


def options(arguments: list[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as keys and values."""
    pairs: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            raise UserError(f"larpo score: {name!r} is not expected here; expected --option value")
        if not equals and (value := next(rest, None)) is None:
            raise UserError(f"larpo score: {name} expects a value")
        pairs[name[2:].replace("-", "_")] = value
    return pairs


if __name__ == "__main__":
    app()
