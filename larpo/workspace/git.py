"""Git, called in one place."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any


class GitError(RuntimeError):
    """A command of Git failed."""

    def __init__(self, arguments: tuple[str, ...], reason: str):
        super().__init__(f"git {' '.join(arguments)}: {reason}")
        self.reason = reason


def git_bytes(
    folder: str | Path,
    *arguments: str,
    given: bytes | None = None,
    check: bool = True,
    environment: dict[str, str] | None = None,
) -> bytes:
    """Output of one command, run in `folder`.

    Parameters
    ----------
    given
        What it reads from standard input.
    check
        False: a command that fails has printed nothing.
    environment
        In place of this process's.

    Raises
    ------
    GitError
    """
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, input=given, capture_output=True, check=False
    )
    if done.returncode == 0:
        return done.stdout
    if check:
        reason = " ".join(done.stderr.decode("utf-8", "replace").split()) or f"ended with {done.returncode}"
        raise GitError(arguments, reason)
    return b""


def git(folder: str | Path, *arguments: str, check: bool = True, **variables: str) -> str:
    """The same as text, without white space around it; `variables` are added to the environment."""
    output = git_bytes(folder, *arguments, check=check, environment=os.environ | variables)
    return output.decode("utf-8", "surrogateescape").strip()


def git_state(folder: str | Path = ".") -> dict[str, Any]:
    """Commit and which tracked files of `folder` differ from it (`dirty`: whether any does in the repository); nulls
    outside a Git checkout."""
    try:
        status = git(folder, "status", "--porcelain", "--untracked-files=no")
    except GitError:
        return {"commit": None, "dirty": None, "changed": []}
    changed = git(folder, "diff", "--name-only", "--relative", "HEAD", check=False) if status else ""
    commit = git(folder, "rev-parse", "--verify", "-q", "HEAD", check=False)
    return {"commit": commit or None, "dirty": bool(status), "changed": changed.splitlines()}


def top_of(folder: str | Path) -> Path | None:
    """The folder of the repository that `folder` lies in; None where it lies in none."""
    top = git(folder, "rev-parse", "--show-toplevel", check=False)
    return Path(top).resolve() if top else None


def find_commit(folder: str | Path, revision: str) -> str | None:
    """The commit that a revision names."""
    revision = f"{revision}^{{commit}}"
    return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", revision, check=False) or None


def experiments(folder: str | Path) -> dict[str, str]:
    """DVC's experiments by name, each with its ref."""
    refs = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps", check=False).splitlines()
    return {ref.rsplit("/", 1)[-1]: ref for ref in refs if not ref.startswith("refs/exps/exec/")}


def stashed(top: Path) -> str:
    """The commit that holds the uncommitted changes of tracked files (`git stash create`); "" where there are none.

    Git locks the index for that and fails where another command holds the lock: runs that open side by side, the
    user's own. Each call works on a copy of the index. It also fails, with 1 and no word, where a file was written
    again with the content that it had, unless the index was refreshed before.
    """
    with tempfile.TemporaryDirectory() as scratch:
        index = shutil.copyfile(top / git(top, "rev-parse", "--git-path", "index"), Path(scratch) / "index")
        own = {"GIT_INDEX_FILE": str(index)}
        git(top, "update-index", "-q", "--refresh", check=False, **own)  # fails where some file has changed
        return git(top, "stash", "create", **own)
