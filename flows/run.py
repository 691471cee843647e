"""The flow `larpo`: one Prefect task per node of dvc.yaml, in dependency order.

`python -m flows.run` runs it without a standing server; `prefect deployment run larpo/iterate` through
one (`python -m flows.serve`). DVC alone decides what is stale; Prefect when a node runs and how often it is
tried.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from flows import project_folder  # first: sets what Prefect reads on import

# isort: split
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.exceptions import TerminationSignal
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import server
from larpo.errors import UserError, one_line
from larpo.report.summary import markdown, text
from larpo.workspace.clone import Workspace, free_name
from larpo.workspace.dvc import GraphNode, read_graph, select
from larpo.workspace.mend import mend
from larpo.workspace.overrides import changed_params
from larpo.workspace.processes import end_on_signals
from larpo.workspace.repro import BadInput, NodeFailed, Repro
from tasks.frame import warm

STATE_NAMES = {"ran": "Completed", "restored": "Restored", "up-to-date": "UpToDate"}
LIMIT = "larpo-heavy"
LEASE_SECONDS = 60.0  # Prefect's minimum; after a kill the slot is free again in about that time
ARTIFACT = "larpo-scores"
Override = Annotated[
    str, Field(pattern=r"^([+~]{0,2}[\w-]+(\.[\w-]+)*=|~[\w.-]+$)", examples=["train.learning_rate=1e-5"])
]


class RunFailed(Exception):
    """Some nodes of `runner` failed; the message names them."""

    def __init__(self, message: str, runner: Repro):
        super().__init__(message)
        self.runner = runner


class HeavySlots:
    """How many heavy nodes run at once, over all runs of a server: Prefect's limit `larpo-heavy`.

    A run's own nodes queue in the process first: while a slot is taken Prefect is asked again only every few
    seconds, which would leave the machine idle between two nodes of one run.
    """

    def __init__(self, slots: int):
        self._queue = threading.BoundedSemaphore(slots)
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(LIMIT, slots)

    @contextlib.contextmanager
    def slot(self, runner: Repro) -> Iterator[None]:
        logger = get_run_logger()
        with self._queue, contextlib.ExitStack() as held:
            while not runner.commands.stopping.is_set():
                try:
                    held.enter_context(
                        concurrency(
                            LIMIT,
                            timeout_seconds=5,
                            lease_duration=LEASE_SECONDS,
                            strict=True,
                            raise_on_lease_renewal_failure=False,
                        )
                    )
                    break
                except TimeoutError:
                    logger.info("Waiting for a slot of %s: another run holds it, or was killed a minute ago", LIMIT)
            yield


def heavy_slots() -> int:
    """`LARPO_HEAVY_SLOTS`, 1 where it is not set: one GPU, or one small machine, one heavy node."""
    return _number("LARPO_HEAVY_SLOTS", 1, least=1)


def _number(variable: str, default: int, least: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{variable}: expected a whole number from {least} up, found {text!r}")
    return int(text)


def _worth_retrying(task: Any, run: TaskRun, state: State) -> bool:
    error = state.data
    return isinstance(error, NodeFailed) and not isinstance(error, BadInput)


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_worth_retrying)
def run_node(name: str, runner: Repro, slots: HeavySlots | None) -> State:
    """Bring one node up to date; the state's name says what that took."""
    logger = get_run_logger()
    with slots.slot(runner) if slots else contextlib.nullcontext():
        done = runner.run(name, say=lambda line: logger.info("%s", line))
    return Completed(name=STATE_NAMES[done.outcome], message=f"{done.outcome} in {done.seconds:.1f} s")


@contextlib.contextmanager
def stopped_at_the_end(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop`, however the block ends, so that the task runner's threads return. A signal leaves the state of the
    run and no log of every task that it ended."""
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal):
        logging.disable()
        raise
    finally:
        stop()


def run_graph(graph: dict[str, GraphNode], folder: Path) -> dict[str, str]:
    """Run the nodes of `graph` in `folder`; returns each one's outcome as the name of its final state.

    Raises
    ------
    RunFailed
        Some nodes failed. Nodes that do not need them have run.
    """
    slots, delay = HeavySlots(heavy_slots()), _number("LARPO_RETRY_DELAY_SECONDS", 10, least=0)
    futures: dict[str, Any] = {}
    with contextlib.ExitStack() as held:
        # Each node has a DVC of its own, and all of them one server.
        runner = Repro(folder, variables=held.enter_context(warm.server(libraries=warm.LIGHT)))
        held.enter_context(stopped_at_the_end(runner.stop))
        for node in graph.values():
            prepared = run_node.with_options(name=node.kind, retries=node.meta.retries, retry_delay_seconds=delay)
            futures[node.name] = prepared.submit(
                node.name, runner, slots if node.meta.heavy else None, wait_for=[futures[need] for need in node.needs]
            )
        wait(list(futures.values()))
    states = {name: future.state for name, future in futures.items()}
    failed = [name for name, state in states.items() if state.is_failed() or state.is_crashed()]
    if failed:
        reasons = "; ".join(str(states[name].message).split(": ", 1)[-1] for name in failed)
        rest = [name for name, state in states.items() if not state.is_final()]
        raise RunFailed(reasons + (f"; not run: {', '.join(rest)}" if rest else ""), runner)
    return {name: state.name for name, state in states.items()}


def show_scores(report: Path | None, outcomes: dict[str, str], title: str) -> None:
    """The score table of a report, its path and each node's outcome as the artifact; the first two also as the last
    lines of the run's log."""
    logger, lines = get_run_logger(), [f"# {title}", ""]
    if report is not None and "report" in outcomes:
        scores, page = json.loads((report / "scores.json").read_text("utf-8")), (report / "index.html").resolve()
        lines += [markdown(scores), f"Report: [{page}]({page.as_uri()})", ""]
        logger.info("%s", text(scores))
        logger.info("Report: %s", page)
    else:
        lines += ["No scores: this run did not bring the report up to date.", ""]
    lines += ["| Node | Outcome |", "| --- | --- |", *(f"| {n} | {o} |" for n, o in outcomes.items())]
    create_markdown_artifact("\n".join(lines) + "\n", key=ARTIFACT, description="Scores of the last run")


@flow(
    name="larpo",
    description="Algorithm 1 of LARPO, as the graph in dvc.yaml: one task per node.",
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=sys.maxsize),
)
def larpo(
    iterations: Annotated[int, Field(ge=1)] | None = None,
    objective: Annotated[str, Field(examples=["listmle", "contrastive"])] | None = None,
    overrides: list[Override] | None = None,
    targets: list[str] | None = None,
    overlays: list[str] | None = None,
) -> dict[str, str]:
    """Bring the graph up to date.

    Parameters
    ----------
    iterations
        Run the first N iterations of params.yaml; beyond the declared ones, the last one's settings continue.
    objective
        In place of `train.objective`: a name of docs/objectives.md, or `module:object` of your own.
    overrides
        A list of `key=value`, each a key of params.yaml (docs/params.md) and its value as YAML, such as
        `train.learning_rate=1e-5`, `evaluate.policies=["0","1"]`; `~key` takes one away.
    targets
        Nodes (`train@1`) or kinds (`lists`) to bring up to date, with all that they need; default: all.
    overlays
        Files with sections laid over params.yaml, such as `configs/params-tiny.yaml`.

    Returns
    -------
    For every node `Completed` (it ran), `Restored` (from the cache) or `UpToDate`. Parameters that differ
    from params.yaml run in a workspace of their own and become a DVC experiment with the flow run's name.

    Raises
    ------
    UserError
        A parameter is wrong; nothing has run.
    RunFailed
        Some nodes failed.
    """
    logger, project = get_run_logger(), project_folder()
    params = changed_params(project, iterations, objective, overrides, overlays)
    if params is None:
        for line in mend(project):
            logger.info("%s", line)
        outcomes = run_graph(select(read_graph(project), targets), project)
        show_scores(project / "report", outcomes, "LARPO")
        return outcomes

    workspace = Workspace(project, free_name(project, flow_run.get_name() or "run"))
    resumed = workspace.open(params)
    logger.info("%s experiment %s in %s", "Resuming" if resumed else "Running", workspace.name, workspace.clone)
    try:
        graph = select(read_graph(workspace.folder), targets)
        outcomes = run_graph(graph, workspace.folder)
    except UserError as error:
        raise UserError(f"{error}{workspace.give_up()}") from None
    except RunFailed as error:
        raise RunFailed(f"{error}{workspace.give_up(error.runner)}", error.runner) from None
    workspace.save(list(graph))
    report = workspace.close()
    logger.info("Saved experiment %s: dvc exp show, dvc exp apply %s", workspace.name, workspace.name)
    show_scores(report, outcomes, f"Experiment {workspace.name}")
    return outcomes


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.run", description="Bring the graph of dvc.yaml up to date, without a server."
    )
    parser.add_argument("--iterations", type=int, metavar="N", help="the first N iterations of params.yaml, or more")
    parser.add_argument("--objective", metavar="X", help="in place of train.objective")
    parser.add_argument(
        "--set", dest="overrides", action="append", metavar="key=value", help="as for dvc exp run -S; repeatable"
    )
    parser.add_argument(
        "--with",
        dest="overlays",
        action="append",
        metavar="FILE",
        help="sections laid over params.yaml (configs/params-tiny.yaml); repeatable",
    )
    parser.add_argument(
        "--target", dest="targets", action="append", metavar="NODE", help="a node or a kind of node; repeatable"
    )
    return parser.parse_args(arguments)


def main() -> int:
    options = vars(parse())
    end_on_signals()
    try:
        # Wrong input is told before a server is started.
        project, targets = project_folder(), options["targets"]
        heavy_slots()
        asked = {key: value for key, value in options.items() if key != "targets"}
        if changed_params(project, **asked) is None:
            select(read_graph(project), targets)
        with server.some_server():
            outcomes = larpo(**options)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    counts = {name: list(outcomes.values()).count(name) for name in STATE_NAMES.values()}
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
