"""Git, called in one place."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

# Neither the user's settings nor an enclosing repository decide: bytes must not depend on the first, and a stranger's
# .gitattributes must find no filter program in it.
ISOLATED = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "LC_ALL": "C",
}
SAFE = (
    "core.symlinks=false",  # a committed link cannot lead a later file out of the folder
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
    "transfer.fsckObjects=true",
    "gc.auto=0",
    "submodule.recurse=false",
)


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


def isolated_git(folder: Path, *arguments: str, given: bytes | None = None, check: bool = True) -> bytes:
    """Output of git, without the user's and the system's configuration; empty where it failed and `check` is off. The
    folder's own configuration holds, but for SAFE: of a stranger's there is a copy (`larpo.workspace.foreign`)."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | ISOLATED
    safe = [part for setting in SAFE for part in ("-c", setting)]
    return git_bytes(folder, *safe, *arguments, given=given, check=check, environment=environment)


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
    # -z: else a name with a quote or a letter beyond ASCII comes in quotes, and is nobody's.
    changed = git(folder, "diff", "--name-only", "-z", "--relative", "HEAD", check=False) if status else ""
    commit = git(folder, "rev-parse", "--verify", "-q", "HEAD", check=False)
    return {
        "commit": commit or None,
        "dirty": bool(status),
        "changed": [_text(name) for name in changed.split("\0") if name],
    }


def _text(name: str) -> str:
    """A name as a record can hold it, whatever its bytes are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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
