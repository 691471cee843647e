"""The whole audit of one run: its parts in order, and the page with its JSON. `larpo audit` calls it, the flow
`larpo-audit` with each part as a task."""

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import chdir
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from larpo.audit.bytes.check import check_bytes
from larpo.audit.card import Answer, Evidence, card
from larpo.audit.chain import whole_chain
from larpo.audit.draw import Draw, draw
from larpo.audit.find import open_run
from larpo.audit.isolation import offline
from larpo.audit.lineage.check import check_lineage, origins
from larpo.audit.open import AuditedRun
from larpo.audit.page import record, render
from larpo.audit.rerun.nodes import choose, limit_of, run_again
from larpo.audit.results import Check, fails
from larpo.audit.science.check import check_science
from larpo.errors import UserError, one_line
from larpo.workspace.files import write_text
from larpo.workspace.git import find_commit, git, git_state
from larpo.workspace.machine import package_versions

PAGE, RECORD = "audit.html", "audit.json"
LOCKS = ("requirements/lock.txt",)
Checks = Callable[[], list[Check]]


@dataclass(frozen=True)
class Selection:
    """Which nodes are executed again: named ones, every one, or those that `larpo.audit.rerun.nodes.choose` draws.

    `requested` null executes them where the run is this project's own, for executing a stranger's run runs its code.
    """

    nodes: tuple[str, ...] = ()
    every: bool = False
    requested: bool | None = None
    draw: Draw = field(default_factory=draw)

    def executes(self, own: bool) -> bool:
        return bool(self.nodes or self.every or (own if self.requested is None else self.requested))


def parts(run: AuditedRun, selection: Selection, own: bool, say: Callable[[str], None]) -> dict[str, Checks]:
    """Part → function that checks it, each relying on those before."""
    executes = selection.executes(own)
    checks: dict[str, Callable[[], Iterable[Check]]] = {
        "bytes": lambda: check_bytes(run),
        "lineage": lambda: check_lineage(run),
        "science": lambda: check_science(run, trusted=own or executes),
    }
    if executes:
        nodes = choose(run, list(selection.nodes), selection.every)  # a wrong name is refused before anything is hashed
        limit = math.inf if selection.nodes or selection.every else limit_of(run)
        checks["again"] = lambda: run_again(run, nodes, say, limit=limit)
    else:
        why = "executing nodes runs the run's code, which is not this project's; ask for it with --again"
        why = f" ({why if selection.requested is None else '--no-again'})"
        checks["again"] = lambda: [whole_chain(run, (), why)]
    return {part: partial(complete, run, part, check) for part, check in checks.items()}


def complete(run: AuditedRun, part: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks of a part, from the run's folder; one that breaks off fails with its reason."""
    checks: list[Check] = []
    try:
        with chdir(run.folder):
            checks.extend(check())
    except UserError as error:
        checks.append(fails(part, "readable", 1, "the part could not go on", [str(error)]))
    except Exception as error:  # noqa: BLE001 - the run may have been written by anyone; other parts go on
        line = f"{type(error).__name__}: {one_line(error)}"
        checks.append(fails(part, "readable", 1, "what the run holds does not fit together", [line]))
    return checks


def audit(
    project: Path,
    run: str | None,
    selection: Selection,
    out: Path,
    say: Callable[[str], None],
    perform: Callable[[str, Checks], list[Check]] = lambda part, check: check(),
) -> dict[str, Any]:
    """Audit `run` (see `open_run`); the page and its JSON, which is returned, lie in `out` afterwards. Nothing else in
    the run's folder is changed.

    Parameters
    ----------
    perform
        Calls the function that checks a part.

    Raises
    ------
    UserError
        No such run, or a node to execute again that it does not have.
    """
    started, clock, checks = datetime.now(UTC), time.monotonic(), []
    with open_run(project, run) as audited, offline(not audited.own):
        audited.draw = selection.draw
        for part, check in parts(audited, selection, audited.own, say).items():
            say(f"{part} …")
            checks += perform(part, check)
        facts = _facts(audited) | {
            "when": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 1),
            "seed": selection.draw.seed,
            "sample": selection.draw.rows,
        }
        tree = record(facts, checks, reproducibility_card(audited, checks))
    write_text(out / RECORD, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    write_text(out / PAGE, render(tree))
    return tree


def _facts(run: AuditedRun) -> dict[str, Any]:
    packages, code = package_versions(), git_state(Path(__file__).parent)
    auditor = f"larpo {(code['commit'] or 'outside Git')[:12]}{' with changes' if code['dirty'] else ''}"
    return {
        "run": run.folder.name,
        "commit": find_commit(run.repository, "HEAD") if run.repository else None,
        "nodes": len(run.nodes),
        "auditor": f"{auditor}, torch {packages.get('torch')}, transformers {packages.get('transformers')}",
    }


def reproducibility_card(run: AuditedRun, checks: list[Check]) -> list[Answer]:
    """The seven variables from the run's manifests and from what the audit found."""
    return card(
        Evidence(
            manifests=run.manifests,
            sources=origins(run),
            params=run.params.model_dump(mode="json"),
            checks=checks,
            remote=_address(
                git(at, "config", "--get", "remote.origin.url", check=False) if (at := run.repository) else ""
            ),
            licence=run.licence,
            lock=next((name for name in LOCKS if (run.folder / name).is_file()), None),
        )
    )


def _address(url: str) -> str | None:
    """A remote that others can reach, without a name or a password in it; None for a path."""
    address = urlsplit(url)
    if address.scheme in ("http", "https", "ssh", "git") and address.hostname:
        return f"{address.scheme}://{address.hostname}{address.path}"
    return url if "@" in url and ":" in url and not address.scheme else None
