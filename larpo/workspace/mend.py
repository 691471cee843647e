"""`python -m larpo.workspace.mend`: make good what a kill left half-written of DVC's own records.

DVC writes dvc.lock and .dvc/tmp/rwlock in place. Killed in that moment it leaves half a file, and every later command
refuses to start. Both can be had again: rwlock says which stages run now; which ones have run, DVC's run cache knows as
well as dvc.lock, so that DVC restores those stages instead of running them.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from larpo.errors import UserError
from larpo.workspace.dvc_lock import read_yaml
from larpo.workspace.files import write_text
from larpo.workspace.git import GitError, git_bytes

GUARDS = (".dvc/tmp/lock", ".dvc/tmp/rwlock.lock")  # what a DVC command holds while it writes them


def mend(folder: str | Path = ".") -> list[str]:
    """Remove a broken rwlock; put the last commit's dvc.lock, or none, in the place of a broken one.

    While a DVC command is at work nothing is touched: what looks broken is then being written.

    Returns
    -------
    A line for each file that was mended.
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


def _take_commit(path: Path) -> str:
    try:
        committed = git_bytes(path.parent, "show", f"HEAD:./{path.name}").decode()
    except GitError:
        path.unlink()
        return "removed, DVC restores what ran from its run cache"
    write_text(path, committed)
    return "the last commit's is in its place, DVC restores what ran since from its run cache"


def main() -> int:
    for line in mend():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
