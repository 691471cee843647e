"""The flow `larpo-audit`: the audit as a deployment, one Prefect task per part."""

from typing import Any

from flows import project_folder  # first: sets what Prefect reads on import

# isort: split
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from larpo.audit.results import Check
from larpo.audit.run import PAGE, Checks, Selection, audit


class DoesNotHold(Exception):
    """The audit found something wrong; the message names the first of it."""

    def __init__(self, checks: list[Check]):
        first = next(c for c in checks if c.verdict == "fails")
        super().__init__(f"{first.name}: {first.failures[0]}")


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
    run: str | None = None, nodes: list[str] | None = None, every: bool = False, again: bool | None = None
) -> dict[str, Any]:
    """Audit a run of this project.

    Parameters
    ----------
    run
        A Git revision, the name of an experiment, a folder or a pack; default: what lies in the project's folder.
    nodes, every, again
        Nodes to execute again by name; or every node; or, true, one of each kind; false: none. Default: one of each
        kind where the run is this project's own, for a stranger's run would run a stranger's code.

    Returns
    -------
    Verdicts by check. The page is report/audit.html, its content report/audit.json.

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

    selection = Selection(tuple(nodes or ()), every, again)
    audit(project_folder(), run, selection, out, lambda line: logger.info("%s", line), perform)
    logger.info("%s checks; page: %s", len(found), out / PAGE)
    if any(check.verdict == "fails" for check in found):
        raise DoesNotHold(found)
    return {check.name: check.verdict for check in found}
