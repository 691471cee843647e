"""`python -m larpo.workspace.mend`: make good what a kill left half-written of DVC's own records.

DVC writes dvc.lock and .dvc/tmp/rwlock in place. Killed in that moment it leaves half a file, and every later command
refuses to start. Both can be had again: rwlock says which stages run now; which ones have run, DVC's run cache knows as
well as dvc.lock, so that DVC restores those stages instead of running them.

Only a file that a kill cut short is replaced, and what was there is kept beside it. One that somebody has to decide
about (a merge conflict, the format of another DVC, an edit that went wrong) is left as it is, and said.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from larpo.config import yaml12
from larpo.errors import UserError, one_line
from larpo.workspace.dvc_lock import read_yaml
from larpo.workspace.files import write_text
from larpo.workspace.git import GitError, git_bytes

GUARDS = (".dvc/tmp/lock", ".dvc/tmp/rwlock.lock")  # what a DVC command holds while it writes them
KEPT = ".dvc/tmp/dvc.lock.broken"
MARKERS = (b"<<<<<<< ", b"||||||| ", b"=======", b">>>>>>> ")  # of a merge conflict, at the start of a line


def mend(folder: str | Path = ".") -> list[str]:
    """Remove a broken rwlock; put the last commit's dvc.lock, or none, in the place of a broken one.

    While a DVC command is at work nothing is touched: what looks broken is then being written.

    Returns
    -------
    A line for each file that was mended.

    Raises
    ------
    UserError
        dvc.lock holds a merge conflict, or was not cut short and yet cannot be read; it is left as it is.
    """
    folder = Path(folder)
    broken: list[tuple[Path, Callable[[Path], bool], Callable[[Path], str]]] = [
        (folder / ".dvc/tmp/rwlock", _is_json, _remove),
        (folder / "dvc.lock", _is_lock, _take_commit),
    ]
    if all(_whole(path, reads) for path, reads, _ in broken):
        return []
    with ExitStack() as held:
        for guard in GUARDS:
            if (folder / guard).exists():
                try:
                    held.enter_context(FileLock(folder / guard, blocking=False, fallback_to_soft=False))
                except Timeout:
                    return []
        if not _whole(folder / "dvc.lock", _is_lock):
            _refuse_decisions(folder / "dvc.lock")
        return [
            f"{path}: half-written by a command that was killed; {repair(path)}"
            for path, reads, repair in broken
            if not _whole(path, reads)
        ]


def _whole(path: Path, reads: Callable[[Path], bool]) -> bool:
    try:
        return reads(path)
    except FileNotFoundError:
        return True


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text("utf-8")), dict)
    except ValueError:
        return False


def _is_lock(path: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    path.stat()  # FileNotFoundError where there is none
    try:
        COMPILED_LOCKFILE_SCHEMA(read_yaml(path))
    except (UserError, Invalid):
        return False
    return True


def _remove(path: Path) -> str:
    path.unlink()
    return "removed, nothing runs now"


def _refuse_decisions(lock: Path) -> None:
    """Raise for a dvc.lock that no kill can have left: whoever wrote it has to say what it should be."""
    text = lock.read_bytes()
    unmerged = git_bytes(lock.parent, "ls-files", "--unmerged", "--", lock.name, check=False)
    if unmerged or any(line.startswith(MARKERS) for line in text.splitlines()):
        raise UserError(
            f"{lock}: a merge conflict, left as it is; resolve it: git checkout --ours dvc.lock (or --theirs), "
            "git add dvc.lock; dvc repro then brings it up to date"
        )
    try:
        tree = yaml12.parse(text)
    except yaml12.UNREADABLE as error:
        # DVC writes one mapping after the other: what a kill left of it ends where the reader stops.
        mark = getattr(error, "problem_mark", None)  # none where bytes are no text: blocks that never reached the disk
        if mark is None or mark.line >= text.count(b"\n") - 1:
            return
        where = f"line {mark.line + 1}: {one_line(error.problem)}"
    else:
        if not isinstance(tree, dict) or (set(tree) <= {"schema", "stages"} and tree.get("schema") in (None, "2.0")):
            return
        where = f"schema {tree.get('schema')!r}, keys {', '.join(map(str, tree))[:80]}; expected '2.0' and stages"
    raise UserError(
        f"{lock}: not a lock that this DVC reads, and not cut short by a kill, so it is left as it is ({where}); "
        "mend it, or take the last commit's: git checkout HEAD dvc.lock"
    )


def _take_commit(path: Path) -> str:
    kept = path.parent / KEPT
    os.replace(path, kept)
    try:
        committed = git_bytes(path.parent, "show", f"HEAD:./{path.name}").decode()
    except GitError:
        return f"moved to {kept}, DVC restores what ran from its run cache"
    write_text(path, committed)
    return f"the last commit's is in its place (it is in {kept}), DVC restores what ran since from its run cache"


def main() -> int:
    try:
        for line in mend():
            print(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
