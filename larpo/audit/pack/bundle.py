"""A run's Git history as one file, and back: the same history makes the same bytes, and nothing in it is executed."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from larpo.errors import UserError
from larpo.workspace.git import GitError, git_bytes

BRANCH = "refs/heads/run"
NAMED = "refs/manifests/"
"""Commits that manifests name and the run's own history does not hold stand below it."""

# Neither the user's settings nor an enclosing repository decide: bytes must not depend on the first, and a stranger's
# .gitattributes must find no filter program in it.
ISOLATED = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
# Deltas are searched anew, by one thread: those of the repository at hand depend on how it came about.
PACKING = (
    "pack-objects",
    "--stdout",
    "--revs",
    "--quiet",
    "--threads=1",
    "--no-reuse-delta",
    "--no-reuse-object",
    "--no-use-bitmap-index",
    "--delta-base-offset",
    "--window=10",
    "--depth=50",
    "--compression=6",
)
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


def run_git(folder: Path, *arguments: str, given: bytes | None = None, check: bool = True) -> bytes:
    """Output of git, without the user's and the system's configuration; empty where it failed and `check` is off."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | ISOLATED
    # safe.directory holds for the user's own settings alone, so a folder of another user needs it here.
    return git_bytes(folder, "-c", "safe.directory=*", *arguments, given=given, check=check, environment=environment)


def write_bundle(folder: Path, commits: Iterable[str], path: Path) -> tuple[str, list[str]]:
    """Write the history of HEAD, and of those of `commits` that it does not hold, as a Git bundle.

    Returns
    -------
    The commit of HEAD, and those of `commits` that are not in this repository.

    Raises
    ------
    UserError
        No commit yet, or a shallow clone.
    """
    head = run_git(folder, "rev-parse", "--verify", "-q", "HEAD^{commit}", check=False).decode().strip()
    if not head:
        raise UserError(f"{folder}: a pack holds the run's commits, and there is none here; `git init`, then commit")
    if run_git(folder, "rev-parse", "--is-shallow-repository").strip() == b"true":
        raise UserError(f"{folder}: a shallow clone lacks the history that a pack holds; `git fetch --unshallow`")
    refs, unknown = {BRANCH: head}, []
    for commit in sorted(set(commits)):
        if not run_git(folder, "rev-parse", "--verify", "-q", f"{commit}^{{commit}}", check=False):
            unknown.append(commit)
        elif not _within(folder, commit, head):
            refs[NAMED + commit] = commit
    objects = run_git(folder, *PACKING, given="".join(f"{c}\n" for c in dict.fromkeys(refs.values())).encode())
    header = "# v2 git bundle\n" + "".join(f"{c} {r}\n" for r, c in {**refs, "HEAD": head}.items()) + "\n"
    path.write_bytes(header.encode() + objects)
    return head, unknown


def _within(folder: Path, commit: str, head: str) -> bool:
    base = run_git(folder, "merge-base", commit, head, check=False).decode().split()
    return base == [commit]


def clone_bundle(bundle: Path, folder: Path, commit: str) -> None:
    """Check the bundle's branch out into the new `folder`; it has no remote and no hooks.

    Raises
    ------
    UserError
        Not a bundle, objects that Git refuses, or another commit than `commit`.
    """
    folder.mkdir()
    try:
        with tempfile.TemporaryDirectory() as empty:
            run_git(folder, "init", "-q", "-b", "main", f"--template={empty}")
        # Written down: it holds for every later command of the folder, too.
        for setting in SAFE[:1]:
            run_git(folder, "config", *setting.split("=", 1))
        safe = [part for setting in SAFE for part in ("-c", setting)]
        refs = [f"{BRANCH}:{BRANCH}", f"{NAMED}*:{NAMED}*"]
        run_git(folder, *safe, "fetch", "-q", "--no-tags", "--no-write-fetch-head", str(bundle.resolve()), *refs)
        head = run_git(folder, "rev-parse", BRANCH).decode().strip()
        if head != commit:
            raise UserError(f"{bundle.name}: its branch is at commit {head[:12]}, pack.json says {commit[:12]}")
        run_git(folder, *safe, "checkout", "-q", "-f", BRANCH.removeprefix("refs/heads/"))
    except GitError as error:
        raise UserError(f"{bundle.name}: not a history that Git accepts ({error.reason[-200:]})") from None
