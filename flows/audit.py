"""The flow `larpo-audit`: the audit as a deployment, one Prefect task per part."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flows import project_folder  # first: sets what Prefect reads on import

# isort: split
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from larpo.audit.open import open_run
from larpo.audit.results import Check
from larpo.audit.run import Again, finish, is_own, parts_of


class DoesNotHold(Exception):
    """The audit found something wrong; the message names the first of it."""


class Part:
    """One part of the audit on its way through a task; `checks` are its results, also where it fails."""

    def __init__(self, check: Callable[[], list[Check]]):
        self.check, self.checks = check, []


@task(name="audit-part", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def check_part(name: str, part: Part) -> int:
    """Number of checks that hold; fails where one of them does."""
    logger = get_run_logger()
    part.checks = part.check()
    for check in part.checks:
        logger.info("%s: %s, %s", check.name, check.verdict, check.detail)
        for line in check.failures[:20]:
            logger.error("%s", line)
    if failed := [c for c in part.checks if c.verdict == "fails"]:
        raise DoesNotHold(f"{failed[0].name}: {failed[0].failures[0]}")
    return sum(c.verdict == "holds" for c in part.checks)


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
    logger, project = get_run_logger(), project_folder()
    started, clock = datetime.now(UTC), time.monotonic()
    with open_run(project, run) as found:
        checks: list[Check] = []
        wanted = Again(tuple(nodes or ()), every, again)
        for name, check in parts_of(found, wanted, is_own(project, run), lambda line: logger.info("%s", line)).items():
            part = Part(check)
            state = check_part(name, part, return_state=True)
            if not part.checks:
                state.result()  # broke off before it found anything: its own error
            checks += part.checks
        tree = finish(found, checks, started, time.monotonic() - clock, project / "report")
    logger.info("%s checks; page: %s", len(checks), project / "report/audit.html")
    if failed := [c for c in checks if c.verdict == "fails"]:
        raise DoesNotHold(f"{failed[0].name}: {failed[0].failures[0]}")
    return {c["name"]: c["verdict"] for c in tree["checks"]}
