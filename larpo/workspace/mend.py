"""`python -m larpo.workspace.mend`: make good what a kill left half-written of DVC's own records.

DVC writes dvc.lock and .dvc/tmp/rwlock in place. Killed in that moment it leaves half a file, and every later command
refuses to start. Both can be had again: rwlock says which stages run now; which ones have run, DVC's run cache knows as
well as dvc.lock, so that DVC restores those stages instead of running them.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import yaml

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
    said = []
    if all(_whole(path, reads) for path, reads, _ in broken):
        return said
    with ExitStack() as held:
        for guard in GUARDS:
            if (folder / guard).exists():
                file = held.enter_context((folder / guard).open("r+"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return []
        for path, reads, repair in broken:
            if not _whole(path, reads):
                said.append(f"{path}: half-written by a command that was killed; {repair(path)}")
    return said


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

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (ValueError, yaml.YAMLError, Invalid):
        return False
    return True


def _remove(path: Path) -> str:
    path.unlink()
    return "removed, nothing runs now"


def _take_commit(path: Path) -> str:
    shown = subprocess.run(["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True, check=False)
    if shown.returncode:
        path.unlink()
        return "removed, DVC restores what ran from its run cache"
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(shown.stdout)
    os.replace(temporary, path)
    return "the last commit's is in its place, DVC restores what ran since from its run cache"


def main() -> int:
    for line in mend():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
