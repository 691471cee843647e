"""The flow `larpo-study`: every cell of a study with every seed, each run a DVC experiment.

A run works in a clone that shares the project's DVC cache (larpo/workspace/clone.py), so runs share every node with
equal code, data and params: the initial model is made once, the samples of one iteration serve every objective. What a
finished run measured is kept in .larpo/studies/; a study that was stopped goes on with the runs that are missing.
It is judged at the looks that it declares, and stops at the first that decides it.
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
from larpo.studies import Run, expand, judge, load_study, results_of
from larpo.studies.expand import targets
from larpo.studies.findings import write_findings
from larpo.studies.page import write_page
from larpo.studies.spec import Rule, ScaleName
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


def _first_of_each(runs: list[Run], sections: tuple[str, ...]) -> list[Run]:
    """One run for each distinct content of some sections of params.yaml."""
    found: dict[str, Run] = {}
    for run in runs:
        found.setdefault(digest("start", {key: run.params.get(key) for key in sections}), run)
    return list(found.values())


def _side_by_side(runs: list[Run], runner: Runner, kinds: tuple[str, ...], count: int, only_shared: bool) -> list:
    """Futures of all runs, finished, at most `count` of them under way at a time."""
    slots, futures = threading.BoundedSemaphore(count), []
    for run in runs:
        slots.acquire()
        futures.append(run_one.submit(run, runner, kinds, only_shared=only_shared))
        futures[-1].add_done_callback(lambda _: slots.release())
    wait(futures)
    return futures


def jobs_of(scale: ScaleName, jobs: int | None) -> int:
    """Runs side by side: at scale `cpu` one per core, at scale `paper` one (a run fills the GPUs)."""
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs: expected 1 or more, found {jobs}")
    return jobs or ((os.cpu_count() or 1) if scale == "cpu" else 1)


def counts_of(rule: Rule, seeds: int | None, until_decided: bool, jobs: int) -> list[int]:
    """Numbers of seeds after which a study is judged: the declared looks; `seeds` alone; or, to be read by the e-value,
    from the first look on as many more as run side by side, up to `seeds` or four times the last look."""
    if until_decided:
        first, last = rule.looks[0], seeds or 4 * rule.looks[-1]
        return [*range(first, last, max(2, jobs)), last]
    return rule.looks if seeds is None else [seeds]


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
    until_decided: bool = False,
) -> dict[str, Any]:
    """Run what is missing of studies/NAME.yaml, look by look until its findings are decided, and write its page.

    Parameters
    ----------
    name, scale
        A file in studies/ and one of its scales.
    seeds
        So many seeds from the study's first one; default: as many as its declared looks need.
    jobs
        Runs side by side; default: one per core at scale `cpu`, else one.
    overlays
        Files with sections laid over the scale's base, such as configs/params-8x80gb.yaml.
    until_decided
        Judge by an e-value, which may be read at any time, and add seeds until it decides.

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
    study, count = load_study(project / STUDIES, name), jobs_of(scale, jobs)
    sources, start, findings = study.sources(scale), time.monotonic(), {}
    counts = counts_of(study.scales[scale].rule, seeds, until_decided, count)
    with ExitStack() as held:
        held.enter_context(alone(project, name, scale))
        environment: dict[str, str] = {}
        if scale == "cpu":
            # Tiny models: one thread each, for two only wait for each other; and no run waits for imports.
            threads = {"OMP_NUM_THREADS": "1"}
            environment = threads | held.enter_context(warm.server(threads))
        runner = Runner(project, sources, environment, study.declaration(scale))
        held.enter_context(stopped_at_the_end(runner.stop))
        for look in counts:
            runs = expand(study, project / STUDIES, scale, look, overlays or [])
            records = _records(runs, runner, targets(runs, sources.values()), count)
            results = results_of(study, scale, records, "ANYTIME" if until_decided else "LOOKS")
            results["findings"] = judge(study, results)
            page = write_page(study, results, project)
            write_findings(project)
            findings = {finding: found["verdict"] for finding, found in results["findings"].items()}
            logger.info("%s, %s seeds: %s; page: %s", name, look, findings or "no claims", page)
            if findings and "undecided" not in findings.values():
                break
    logger.info("%s: %.0f s now, %s s in all runs", name, time.monotonic() - start, results["run_seconds"])
    return findings


def _records(runs: list[Run], runner: Runner, kinds: tuple[str, ...], count: int) -> list[dict[str, Any]]:
    """What every run measured, those that are missing made first."""
    missing = [run for run in runs if runner.finished(run) is None]
    get_run_logger().info(
        "%s runs, %s of them measured before, %s side by side", len(runs), len(runs) - len(missing), count
    )
    # Nodes that runs share are made before they go side by side. A run whose shared nodes fail here fails once more
    # below, where it is counted; others go on.
    for sections in (("policy", "sft"), ("policy", "sft", "reward", "retrieval", "evaluate")):
        first = _first_of_each(missing, sections)
        if count > 1 and len(first) < len(missing):
            _side_by_side(first, runner, kinds, count, only_shared=True)
    futures = _side_by_side(runs, runner, kinds, count, only_shared=False)
    failed = [(r, f) for r, f in zip(runs, futures, strict=True) if not f.state.is_completed()]
    if failed:
        reasons = "; ".join(f"{r.name}: {str(f.state.message).splitlines()[0]}" for r, f in failed[:3])
        raise StudyFailed(f"{len(failed)} of {len(runs)} runs failed: {reasons}")
    return [future.result() for future in futures]


def run(
    name: str,
    scale: ScaleName,
    seeds: int | None,
    jobs: int | None,
    overlays: list[str] | None = None,
    until_decided: bool = False,
) -> dict[str, Any]:
    """`larpo study`: the flow, on the server that the settings name or on one for as long as it takes.

    Wrong input, and another process at the same study, is told before a server is started.
    """
    project = project_folder()
    expand(load_study(project / STUDIES, name), project / STUDIES, scale, seeds, overlays or [])
    jobs_of(scale, jobs)
    Workspace(project, name)  # refuses a project that is not under Git
    with alone(project, name, scale):
        pass  # another process at it is named before a server is started; the flow holds the lock
    with some_server():
        return larpo_study(
            name=name, scale=scale, seeds=seeds, jobs=jobs, overlays=overlays, until_decided=until_decided
        )
