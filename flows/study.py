"""The flow `larpo-study`: every cell of a study with every seed, each run a DVC experiment.

A run works in a clone that shares the project's DVC cache (larpo/workspace/clone.py), so runs share every node with
equal code, data and params: the initial model is made once, the samples of one iteration serve every objective. What a
finished run measured is kept in .larpo/studies/; a study that was stopped goes on with the runs that are missing.
"""

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows import project_folder  # first: sets what Prefect reads on import

# isort: split
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.run import stopped_at_the_end
from flows.server import some_server
from larpo.errors import UserError
from larpo.hashing import digest
from larpo.studies import Run, expand, load_study
from larpo.studies.page import write_findings, write_page
from larpo.studies.results import summarise
from larpo.studies.spec import ScaleName, targets
from larpo.workspace.clone import Workspace
from larpo.workspace.study import Runner, alone
from tasks.frame import warm

STUDIES = Path("studies")


class StudyFailed(Exception):
    """Some runs failed; the message names them."""


@task(task_run_name="{run.name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def run_one(run: Run, runner: Runner, kinds: tuple[str, ...], only_shared: bool) -> dict[str, Any] | None:
    logger = get_run_logger()
    if kept := runner.finished(run):
        logger.info("%s: measured before", run.name)
        return kept
    return runner.run(run, kinds, only_shared, lambda line: logger.debug("%s", line))


def _first_of_each_start(runs: list[Run]) -> list[Run]:
    """One run for each set of nodes that seeds share: of equal initial models, fine-tunings, rewards and retrievers."""
    found: dict[str, Run] = {}
    for run in runs:
        start = {key: run.params.get(key) for key in ("policy", "sft", "reward", "retrieval", "evaluate")}
        found.setdefault(digest("start", start), run)
    return list(found.values())


def jobs_of(scale: ScaleName, jobs: int | None) -> int:
    """Runs side by side: at scale `cpu` one per core, at scale `paper` one (a run fills the GPUs)."""
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs: expected 1 or more, found {jobs}")
    return jobs or ((os.cpu_count() or 1) if scale == "cpu" else 1)


@flow(
    name="larpo-study",
    description="A table or figure of the paper: every cell with every seed, each a DVC experiment.",
    flow_run_name="{name}-{scale}",
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=64),
)
def larpo_study(
    name: str,
    scale: ScaleName = "cpu",
    seeds: int | None = None,
    jobs: int | None = None,
    overlays: list[str] | None = None,
) -> dict[str, Any]:
    """Run what is missing of studies/NAME.yaml and write its page.

    Parameters
    ----------
    name, scale
        A file in studies/ and one of its scales.
    seeds
        Seeds 0..n-1; default: the study's own number.
    jobs
        Runs side by side; default: one per core at scale `cpu`, else one.
    overlays
        Files with sections laid over the scale's base, such as configs/params-8x80gb.yaml.

    Returns
    -------
    Findings with their verdicts. The page is report/studies/NAME-SCALE.html, its numbers are in studies/results/.

    Raises
    ------
    UserError
        The study or its parameters are wrong; nothing has run.
    StudyFailed
        Some runs failed; the others are kept.
    """
    logger, project = get_run_logger(), project_folder()
    study = load_study(project / STUDIES, name)
    runs = expand(study, project / STUDIES, scale, seeds, overlays or [])
    count = jobs_of(scale, jobs)
    kinds = targets(runs)
    start = time.monotonic()
    with ExitStack() as held:
        held.enter_context(alone(project, name, scale))
        environment: dict[str, str] = {}
        if scale == "cpu":
            # Tiny models: one thread each, for two only wait for each other; and no run waits for imports.
            threads = {"OMP_NUM_THREADS": "1"}
            environment = threads | held.enter_context(warm.server(threads))
        runner = Runner(project, study.sources(scale), environment)
        held.enter_context(stopped_at_the_end(runner.stop))
        missing = [run for run in runs if runner.finished(run) is None]
        logger.info("%s runs, %s of them measured before, %s side by side", len(runs), len(runs) - len(missing), count)
        # A run whose shared nodes fail here fails once more below, where it is counted; others go on.
        for run in _first_of_each_start(missing) if count > 1 and len(missing) > 1 else []:
            run_one.submit(run, runner, kinds, only_shared=True).wait()
        slots = threading.BoundedSemaphore(count)
        futures = []
        for run in runs:
            slots.acquire()
            future = run_one.submit(run, runner, kinds, only_shared=False)
            future.add_done_callback(lambda _: slots.release())
            futures.append(future)
        wait(futures)
    failed = [(r, f) for r, f in zip(runs, futures, strict=True) if not f.state.is_completed()]
    if failed:
        reasons = "; ".join(f"{r.name}: {str(f.state.message).splitlines()[0]}" for r, f in failed[:3])
        raise StudyFailed(f"{len(failed)} of {len(runs)} runs failed: {reasons}")
    kept = [future.result() for future in futures]
    values: dict[str, dict[str, list[float]]] = {}
    for run, record in zip(runs, kept, strict=True):
        for measure, value in record["values"].items():
            values.setdefault(run.cell, {}).setdefault(measure, []).append(value)
    seconds = sum(record["seconds"] for record in kept)
    commits = sorted({f"{r['git']['commit'][:10]}{' and changes' if r['git']['dirty'] else ''}" for r in kept})
    facts = {"run_seconds": round(seconds), "commits": commits}
    summary = summarise(study, scale, len(runs) // len(study.cells), values, facts)
    page = write_page(study, summary, project)
    write_findings(project)
    logger.info("%s: %.0f s now, %.0f s in all runs; page: %s", name, time.monotonic() - start, seconds, page)
    return {finding: found["verdict"] for finding, found in summary["findings"].items()}


def run(
    name: str, scale: ScaleName, seeds: int | None, jobs: int | None, overlays: list[str] | None = None
) -> dict[str, Any]:
    """`larpo study`: the flow, on the server that the settings name or on one for as long as it takes.

    Wrong input is told before a server is started.
    """
    project = project_folder()
    expand(load_study(project / STUDIES, name), project / STUDIES, scale, seeds, overlays or [])
    jobs_of(scale, jobs)
    Workspace(project, name)  # refuses a project that is not under Git
    with some_server():
        return larpo_study(name=name, scale=scale, seeds=seeds, jobs=jobs, overlays=overlays)
