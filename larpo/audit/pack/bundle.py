"""A run's Git history as one file, and back: the same history makes the same bytes, and nothing in it is executed."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from larpo.errors import UserError
from larpo.workspace.git import GitError, isolated_git

BRANCH = "refs/heads/run"
NAMED = "refs/manifests/"
"""Commits that manifests name and the run's own history does not hold stand below it."""

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
    head = isolated_git(folder, "rev-parse", "--verify", "-q", "HEAD^{commit}", check=False).decode().strip()
    if not head:
        raise UserError(f"{folder}: a pack holds the run's commits, and there is none here; `git init`, then commit")
    if isolated_git(folder, "rev-parse", "--is-shallow-repository").strip() == b"true":
        raise UserError(f"{folder}: a shallow clone lacks the history that a pack holds; `git fetch --unshallow`")
    refs, unknown = {BRANCH: head}, []
    for commit in sorted(set(commits)):
        if not isolated_git(folder, "rev-parse", "--verify", "-q", f"{commit}^{{commit}}", check=False):
            unknown.append(commit)
        elif not _within(folder, commit, head):
            refs[NAMED + commit] = commit
    objects = isolated_git(folder, *PACKING, given="".join(f"{c}\n" for c in dict.fromkeys(refs.values())).encode())
    header = "# v2 git bundle\n" + "".join(f"{c} {r}\n" for r, c in {**refs, "HEAD": head}.items()) + "\n"
    path.write_bytes(header.encode() + objects)
    return head, unknown


def _within(folder: Path, commit: str, head: str) -> bool:
    base = isolated_git(folder, "merge-base", commit, head, check=False).decode().split()
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
            isolated_git(folder, "init", "-q", "-b", "main", f"--template={empty}")
        isolated_git(folder, "config", "core.symlinks", "false")  # for every later command of the folder, too
        refs = [f"{BRANCH}:{BRANCH}", f"{NAMED}*:{NAMED}*"]
        isolated_git(folder, "fetch", "-q", "--no-tags", "--no-write-fetch-head", str(bundle.resolve()), *refs)
        head = isolated_git(folder, "rev-parse", BRANCH).decode().strip()
        if head != commit:
            raise UserError(f"{bundle.name}: its branch is at commit {head[:12]}, pack.json says {commit[:12]}")
        isolated_git(folder, "checkout", "-q", "-f", BRANCH.removeprefix("refs/heads/"))
    except GitError as error:
        raise UserError(f"{bundle.name}: not a history that Git accepts ({error.reason[-200:]})") from None
