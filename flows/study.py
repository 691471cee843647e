"""The flow `larpo-study`: every cell of a study with every seed, each run a DVC experiment.

A run works in a clone that shares the project's DVC cache (flows/workspace.py), so runs share every node with equal
code, data and params: the initial model is made once, the samples of one iteration serve every objective. What a
finished run measured is kept in .larpo/studies/; a study that was stopped goes on with the runs that are missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from flows import project_folder  # first: sets what Prefect reads on import

# isort: split
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows import supervise
from flows.graph import read_graph, select
from flows.iterate import some_server
from flows.nodes import Output
from flows.workspace import Workspace
from larpo.errors import UserError
from larpo.hashing import digest, file_hash
from larpo.studies import Run, expand, load_study
from larpo.studies.page import write_findings, write_page
from larpo.studies.results import read_value, summarise
from larpo.studies.spec import ScaleName, Source, targets
from tasks import warm
from tasks.node import git_state

STUDIES, KEPT, RESULTS = Path("studies"), Path(".larpo/studies"), Path("studies/results")
# Nodes that do not depend on the seed: made by the first run alone, so that parallel runs do not make them twice.
SHARED = ("policy", "sft", "reward", "embed")


class StudyFailed(Exception):
    """Some runs failed; the message names them."""


class Runner:
    """Runs of one study in one project; `stop` ends those that are under way."""

    def __init__(self, project: Path, sources: dict[str, Source], environment: dict[str, str]):
        self.project, self.sources, self.environment = project, sources, environment
        # Git locks its index, and DVC is read in this process: one at a time.
        self._alone = threading.Lock()
        files = [project / "dvc.yaml", *project.glob("larpo/**/*.py"), *project.glob("tasks/*.py")]
        self.code = {
            file.relative_to(project).as_posix(): file_hash(file)
            for file in sorted(files)
            # How studies are read, planned and shown does not change what a run computes.
            if not file.relative_to(project).as_posix().startswith(("larpo/studies/", "larpo/plan/", "larpo/overlays"))
        }
        self._stopping = threading.Event()
        self._processes: set[subprocess.Popen] = set()

    def record(self, run: Run) -> Path:
        return self.project / KEPT / f"{run.study}-{run.scale}" / f"{run.cell}-s{run.seed}.json"

    def identity(self, run: Run) -> str:
        """Of all that a run's numbers depend on: its parameters, the graph, the code, what is measured."""
        measured = {name: [s.file, s.key] for name, s in self.sources.items()}
        return digest("study run", run.params, run.policy, measured, self.code)

    def finished(self, run: Run) -> dict[str, Any] | None:
        """What a run measured, if it was made from what lies here now."""
        path = self.record(run)
        kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return kept if kept.get("identity") == self.identity(run) else None

    def run(self, run: Run, kinds: tuple[str, ...], only_shared: bool, say: Any) -> dict[str, Any] | None:
        """Bring `kinds` of the run's graph up to date; saves it as an experiment and returns what it measured.

        With `only_shared` it stops after the nodes that all seeds share, and saves nothing.
        """
        workspace = Workspace(self.project, run.name)
        start = time.monotonic()
        with self._alone:
            workspace.open(yaml.safe_dump(run.params, sort_keys=False, allow_unicode=True))
            graph = select(read_graph(workspace.folder), [*kinds])
        nodes = [n.name for n in graph.values() if not only_shared or n.kind in SHARED]
        self._repro(workspace.folder, nodes, say)
        if only_shared:
            return None
        measured = {name: read_value(workspace.folder, source, run.policy) for name, source in self.sources.items()}
        with self._alone:
            workspace.save(nodes)
            workspace.close()
        kept = {
            "identity": self.identity(run),
            "experiment": run.name,
            "values": measured,
            "seconds": round(time.monotonic() - start, 1),
        }
        path = self.record(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        temporary.replace(path)
        return kept

    def _repro(self, folder: Path, nodes: list[str], say: Any) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"} | self.environment
        if self._stopping.is_set():
            raise StudyFailed("stopped")
        process = supervise.start(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *nodes],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        self._processes.add(process)
        output = Output("")
        try:
            assert process.stdout is not None
            for line in process.stdout:
                output.read(line.rstrip())
                say(line.rstrip())
            if process.wait():
                raise StudyFailed(output.refusal or output.last or output.complaint)
        finally:
            self._processes.discard(process)
            supervise.stop(process)
            process.stdout.close()

    def stop(self) -> None:
        self._stopping.set()
        for process in list(self._processes):
            assert process.stdin is not None
            process.stdin.close()


@task(task_run_name="{run.name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def run_one(run: Run, runner: Runner, kinds: tuple[str, ...], only_shared: bool) -> dict[str, Any] | None:
    logger = get_run_logger()
    if kept := runner.finished(run):
        logger.info("%s: measured before", run.name)
        return kept
    return runner.run(run, kinds, only_shared, lambda line: logger.debug("%s", line))


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
        environment: dict[str, str] = {}
        if scale == "cpu":
            # Tiny models: one thread each, and no run waits for libraries to be imported.
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
            environment = threads | held.enter_context(warm.server(threads))
        runner = Runner(project, study.sources(scale), environment)
        held.callback(runner.stop)
        missing = [run for run in runs if runner.finished(run) is None]
        logger.info("%s runs, %s of them measured before, %s side by side", len(runs), len(runs) - len(missing), count)
        if len(missing) > 1:
            run_one.submit(missing[0], runner, kinds, only_shared=True).result()
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
    facts = {"run_seconds": round(seconds), "commit": git_state()["commit"]}
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
    with some_server():
        return larpo_study(name=name, scale=scale, seeds=seeds, jobs=jobs, overlays=overlays)
