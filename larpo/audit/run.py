"""The whole audit of one run, without Prefect: what `larpo audit` calls and the flow wraps."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from larpo.audit.bytes.check import check_bytes
from larpo.audit.card import Answer, Evidence, card
from larpo.audit.lineage.check import check_lineage, origins
from larpo.audit.open import AuditedRun
from larpo.audit.page import record, render
from larpo.audit.rerun.nodes import choose, run_again
from larpo.audit.results import Check, fails, unchecked
from larpo.errors import UserError, one_line
from larpo.workspace.files import write_text
from larpo.workspace.git import git
from larpo.workspace.machine import package_versions

PAGE, RECORD = "audit.html", "audit.json"
LOCKS = ("requirements/lock.txt",)


@dataclass(frozen=True)
class Again:
    """Which nodes are executed again: named ones, every one, or one of each kind.

    `asked` null executes them where the run is this project's own, for executing a stranger's run runs its code.
    """

    nodes: tuple[str, ...] = ()
    every: bool = False
    asked: bool | None = None

    def wanted(self, own: bool) -> bool:
        return bool(self.nodes or self.every or (own if self.asked is None else self.asked))


def check_science(run: AuditedRun, trusted: bool = False) -> Iterator[Check]:
    """`trusted`: code that the run's checkpoints bring may run, where its parameters say so."""
    from larpo.audit.science import check as science

    with contextlib.chdir(run.folder):
        yield from science.check_science(run, trusted)


def is_own(project: Path, run: str | None) -> bool:
    """Whether `run`, as `open_run` takes it, is of this project: its folder, one of its revisions or experiments."""
    return run is None or not Path(run).exists() or Path(run).resolve() == project.resolve()


def parts_of(
    run: AuditedRun, again: Again, own: bool, say: Callable[[str], None]
) -> dict[str, Callable[[], list[Check]]]:
    """Part → function that checks it, each relying on those before. One that breaks off fails with its reason."""

    def whole(part: str, made: Callable[[], Iterable[Check]]) -> Callable[[], list[Check]]:
        def check() -> list[Check]:
            found: list[Check] = []
            try:
                found.extend(made())
            except UserError as error:
                found.append(fails(part, "readable", 1, "the part could not go on", [str(error)]))
            except Exception as error:  # noqa: BLE001 - the run may have been written by anyone; other parts go on
                told = f"{type(error).__name__}: {one_line(error)}"
                found.append(fails(part, "readable", 1, "what the run holds does not fit together", [told]))
            return found

        return check

    parts: dict[str, Callable[[], Iterable[Check]]] = {
        "bytes": lambda: check_bytes(run),
        "lineage": lambda: check_lineage(run),
        "science": lambda: check_science(run, own or again.wanted(own)),
    }
    if again.wanted(own):
        nodes = list(again.nodes) or None
        choose(run, nodes, again.every)  # a wrong name is told before anything is hashed
        parts["again"] = lambda: run_again(run, nodes, again.every, say)
    elif again.asked is None:
        why = "the run is not this project's, and executing its nodes runs its code; ask for it with --again"
        parts["again"] = lambda: [unchecked("again", "nodes executed again", why)]
    return {part: whole(part, made) for part, made in parts.items()}


def finish(run: AuditedRun, checks: list[Check], started: datetime, seconds: float, out: Path) -> dict[str, Any]:
    """Write the page and its JSON into `out`; returns the JSON tree."""
    tree = record(_facts(run, started, seconds), checks, reproducibility_card(run, checks))
    write_text(out / RECORD, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    write_text(out / PAGE, render(tree))
    return tree


def audit(run: AuditedRun, again: Again, own: bool, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Audit `run` (`own`: this project's, see `Again`); the page and its JSON lie in `out` afterwards. Nothing else in
    the run's folder is changed.

    Raises
    ------
    UserError
        A node to execute again does not exist.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    checks = []
    for part, check in parts_of(run, again, own, say).items():
        say(f"{part} …")
        checks += check()
    return finish(run, checks, started, time.monotonic() - clock, out)


def _facts(run: AuditedRun, started: datetime, seconds: float) -> dict[str, Any]:
    packages, code = package_versions(), Path(__file__).resolve().parents[2]
    commit = git(code, "rev-parse", "--short=12", "HEAD", check=False)
    changed = git(code, "status", "--porcelain", "--untracked-files=no", check=False)
    auditor = f"larpo {commit or 'outside Git'}{' with changes' if changed else ''}"
    return {
        "run": run.folder.name,
        "commit": git(run.folder, "rev-parse", "HEAD", check=False) or None,
        "nodes": len(run.nodes),
        "when": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "auditor": f"{auditor}, torch {packages.get('torch')}, transformers {packages.get('transformers')}",
    }


def reproducibility_card(run: AuditedRun, checks: list[Check]) -> list[Answer]:
    """The seven variables from the run's manifests and from what the audit found."""
    manifests: dict[str, dict[str, Any]] = {}
    for node in run.nodes:
        with contextlib.suppress(UserError):  # told by the check `manifests`
            manifests[node.name] = run.manifest(node)
    return card(
        Evidence(
            manifests=manifests,
            kinds={name: run.graph[name].kind for name in manifests},
            sources=origins(run, manifests),
            params=run.params.model_dump(mode="json"),
            checks=checks,
            remote=_address(git(run.folder, "remote", "get-url", "origin", check=False)),
            licence=run.licence,
            lock=next((name for name in LOCKS if (run.folder / name).is_file()), None),
        )
    )


def _address(url: str) -> str | None:
    """A remote that others can reach, without a name or a password in it; None for a path."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "ssh", "git") and parts.hostname:
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    return url if "@" in url and ":" in url and not parts.scheme else None
