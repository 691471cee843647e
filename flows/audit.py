"""The flow `larpo-audit`: the audit as a deployment, one Prefect task per part."""

from typing import Any

from flows import project_folder  # first: sets what Prefect reads on import

# isort: split
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from larpo.audit.draw import ROWS, draw
from larpo.audit.results import Check, verdict_of
from larpo.audit.run import PAGE, Checks, Selection, audit


class DoesNotHold(Exception):
    """The audit found something wrong; the message names the first of it."""

    def __init__(self, checks: list[Check]):
        super().__init__(verdict_of(checks)[1])


@task(name="audit-part", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def check_part(name: str, check: Checks, checks: list[Check]) -> int:
    """Number of checks that hold; fails where one of them does. They are added to `checks` in any case."""
    logger = get_run_logger()
    checks += check()
    for one in checks:
        logger.info("%s: %s, %s", one.name, one.verdict, one.detail)
        for line in one.failures[:20]:
            logger.error("%s", line)
    if any(one.verdict == "fails" for one in checks):
        raise DoesNotHold(checks)
    return sum(one.verdict == "holds" for one in checks)


@flow(
    name="larpo-audit",
    description="Whether a finished run is what it says it is: bytes, lineage, science, nodes executed again.",
    persist_result=False,
)
def larpo_audit(
    run: str | None = None,
    nodes: list[str] | None = None,
    every: bool = False,
    again: bool | None = None,
    seed: int | None = None,
    sample: int = ROWS,
) -> dict[str, Any]:
    """Audit a run of this project.

    Parameters
    ----------
    run
        A Git revision, the name of an experiment, a folder or a pack; default: what lies in the project's folder.
    nodes, every, again
        Nodes to execute again by name; or every node; or, true, those that an audit draws; false: none. Default: those
        where the run is this project's own, for a stranger's run would run a stranger's code.
    seed, sample
        What is drawn by lot: by this seed (default: a random one), so many rows of a table.

    Returns
    -------
    Verdicts by check, and on the run ("run"). The page is report/audit.html, its content report/audit.json.

    Raises
    ------
    DoesNotHold
        Something is wrong.
    UserError
        No such run, or no such node.
    """
    logger, out, found = get_run_logger(), project_folder() / "report", []

    def perform(part: str, check: Checks) -> list[Check]:
        checks: list[Check] = []
        state = check_part(part, check, checks, return_state=True)
        if not checks:
            state.result()  # broke off before it found anything: its own error
        found.extend(checks)
        return checks

    selection = Selection(tuple(nodes or ()), every, again, draw(seed, sample))
    audit(project_folder(), run, selection, out, lambda line: logger.info("%s", line), perform)
    logger.info("%s checks; page: %s", len(found), out / PAGE)
    if any(check.verdict == "fails" for check in found):
        raise DoesNotHold(found)
    verdict, first = verdict_of(found)
    logger.log(20 if verdict == "holds" else 30, "%s%s", verdict, f": {first}" if first else "")
    return {"run": verdict} | {check.name: check.verdict for check in found}
