"""The Hugging Face hub: which commit a name stands for, and that no node waits long where there is no network.

A name without a pinned revision means another commit tomorrow. The node `inputs` resolves it once (`commit_of`) and
records the commit; every node that reads the model or the dataset takes that one (`pinned`, `revision_of`).
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Literal

from larpo.errors import ParameterError, one_line

Kind = Literal["model", "dataset"]
COMMIT = re.compile("[0-9a-f]{40}")
SECONDS = 6.0
"""The longest that the hub is waited for: a name server that does not answer has no time limit of its own. With the
time that a command takes to start it is told within ten."""
Pins = Mapping[tuple[str, str, str | None], str]
"""(model or dataset, name, revision as it is asked for) → commit"""
_PINS: ContextVar[Pins | None] = ContextVar("commits that records name", default=None)


class NotFetched(ParameterError):
    """What a name of the hub stands for is not here and cannot be fetched now: no fault of who names it."""


class Unreachable(Exception):
    """The hub does not answer; the message says why."""


def commit_of(name: str, kind: Kind, revision: str | None, recorded: str | None, say: Callable[[str], None]) -> str:
    """The commit that a repository's `revision` (null: its main branch) stands for now.

    Parameters
    ----------
    recorded
        The commit that it stood for when it was last resolved: taken, and said, where the hub cannot be reached; and
        where it was never resolved, the one that the hub's cache on this machine holds.

    Raises
    ------
    ParameterError
        There is no such repository, or the hub cannot be reached and nothing is known here. Without a key.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    try:
        if reason := unreachable():
            raise Unreachable(reason)
        return _ask(lambda: _sha(name, kind, revision))
    except Unreachable as error:
        known = recorded or cached_commit(name, kind, revision)
        if known is None:
            there = ", ".join(cached(kind)) or "none is"
            raise NotFetched(
                "",
                f"{name}: the hub cannot be reached ({error}) and no copy is here; connect, give a folder, or name a "
                f"{kind} that is cached: {there}",
            ) from None
        where = "recorded before" if recorded else "in the hub's cache"
        say(f"{name}: the hub cannot be reached ({error}); taken is commit {known[:12]}, {where}")
        return known


def _sha(name: str, kind: Kind, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        sha = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS / 2).sha
    except (RepositoryNotFoundError, GatedRepoError) as error:
        why = "is not open to this account" if isinstance(error, GatedRepoError) else "does not exist, or is private"
        raise ParameterError("", f"{kind} {name} {why}; accept its terms, or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise ParameterError("", f"{name} has no revision {revision!r}") from None
    except HfHubHTTPError as error:
        raise Unreachable(one_line(error)[:120]) from None
    if sha is None:
        raise Unreachable("it names no commit")
    return sha


def _ask(question: Callable[[], str]) -> str:
    """The hub's answer within SECONDS; Unreachable where there is none."""
    answer: list[str] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            answer.append(question())
        except BaseException as error:  # noqa: BLE001 - told below
            failure.append(error)

    # Not an executor: at its end Python would wait for a thread that hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if answer:
        return answer[0]
    if failure and isinstance(failure[0], ParameterError | Unreachable):
        raise failure[0]
    raise Unreachable(one_line(failure[0])[:120] if failure else f"no answer within {SECONDS:g} s")


@cache
def unreachable() -> str | None:
    """Why this process cannot reach the hub; None where it can."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        _ask(lambda: str(get_session().head(constants.ENDPOINT, timeout=SECONDS / 2).status_code))
    except Unreachable as error:
        return str(error)
    return None


def offline_where_unreachable() -> None:
    """Before a library asks the hub: where there is no network the libraries work from their caches at once, instead
    of trying each file for half a minute."""
    if unreachable():
        from huggingface_hub import constants

        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            import datasets

            datasets.config.HF_HUB_OFFLINE = True


def cached_commit(name: str, kind: Kind, revision: str | None = None) -> str | None:
    """The commit that the hub's cache holds of a revision; None where there is none."""
    place = _cache() / f"{kind}s--{name.replace('/', '--')}" / "refs" / (revision or "main")
    try:
        commit = place.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def cached(kind: Kind) -> list[str]:
    """Names of the repositories that the hub's cache holds."""
    start = f"{kind}s--"
    folders = sorted(p.name for p in _cache().glob(f"{start}*") if (p / "refs").is_dir())
    return [name.removeprefix(start).replace("--", "/", 1) for name in folders]


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@contextmanager
def pinned(records: Iterable[Mapping[str, Any]]) -> Iterator[None]:
    """In this block names of the hub mean the commits that these records of inputs hold."""
    pins = {(r["type"], r["name"], r["revision"]): r["version"] for r in records if r["kind"] == "hub"}
    token = _PINS.set({**(_PINS.get() or {}), **pins})
    try:
        yield
    finally:
        _PINS.reset(token)


def revision_of(name: str, kind: Kind, revision: str | None = None) -> str | None:
    """The commit that a record pins a name to, else the revision as it was asked for."""
    return (_PINS.get() or {}).get((kind, name, revision), revision)
