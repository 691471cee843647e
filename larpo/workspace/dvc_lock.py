"""dvc.lock: what DVC says was run; and whether a node's inputs are the bytes that the nodes before it made.

DVC knows a file by its time and size and reads it only where these changed; a bit that a disk flipped, or a cache
object that is no longer what its name says, goes unnoticed. A node reads its inputs from end to end anyway.
"""

import configparser
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from larpo.config import yaml12
from larpo.errors import UserError, one_line
from larpo.hashing import dvc_hash, file_hash, tree_hash_of

LOCK = "dvc.lock"
MANIFEST = ".manifest.json"
TRIES, PAUSE = 4, 0.5  # dvc.lock is written in place: beside other stages of a run it may be seen half-written


@dataclass(frozen=True)
class Entry:
    """A file or folder as dvc.lock records it; a folder's md5 ends with `.dir`."""

    path: str
    md5: str
    size: int | None = None
    files: int | None = None


@dataclass(frozen=True)
class LockedNode:
    """One stage of dvc.lock. `params`: file → dotted key → value; for a file that is tracked whole, its content."""

    name: str
    cmd: str
    deps: dict[str, Entry]
    outs: dict[str, Entry]
    params: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def manifest(self) -> str | None:
        """Path of the node's record of itself."""
        return next((path for path in self.outs if path.endswith(MANIFEST)), None)

    @property
    def products(self) -> dict[str, Entry]:
        """Outputs without the manifest, which holds times and names of machines."""
        return {path: entry for path, entry in self.outs.items() if not path.endswith(MANIFEST)}


def read_yaml(path: Path) -> Any:
    """A file as DVC reads it; {} for an empty one, UserError where it cannot be read."""
    return yaml12.read(path) or {}


def plain(path: str | Path, root: Path | None = None) -> str:
    """One name for one path, however a parameter wrote it: `./data/x`, `data//x` and `data/x/` are `data/x`, and so is
    what lies at that absolute place below `root`. dvc.lock keeps the first three as written, and shortens the last."""
    path = os.path.normpath(path)
    for home in (root, root.resolve()) if root and os.path.isabs(path) else ():
        if Path(path).is_relative_to(home):
            return Path(path).relative_to(home).as_posix()
    return Path(path).as_posix()


def read_lock(path: Path) -> dict[str, LockedNode]:
    """dvc.lock by node.

    Raises
    ------
    UserError
        Absent, or not what DVC writes.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; an audit needs a finished run: `dvc repro`")
    try:
        nodes = {}
        for name, stage in read_yaml(path)["stages"].items():
            deps, outs = (_entries(stage.get(side, []), f"{path}: {name}") for side in ("deps", "outs"))
            nodes[name] = LockedNode(name, stage["cmd"], deps, outs, stage.get("params", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a dvc.lock ({one_line(error)[:120]})") from None
    return nodes


def _entries(rows: list[dict[str, Any]], where: str) -> dict[str, Entry]:
    """By path. A dependency that dvc.yaml names twice (by two parameters of one value) stands here twice, alike."""
    found: dict[str, Entry] = {}
    for row in rows:
        entry = Entry(plain(row["path"]), row["md5"], row.get("size"), row.get("nfiles"))
        if found.setdefault(entry.path, entry) != entry:
            raise UserError(f"{where} records {entry.path} twice, with different contents; expected what DVC writes")
    return found


def check_recorded(hashes: dict[Path, dict[str, str]], stage: str) -> None:
    """Refuse inputs that are neither what dvc.lock names nor what their node's manifest does.

    Where there is no dvc.lock, or where it does not name an input, nothing is known and nothing refused. A node that
    was run by hand has written its manifest, so its outputs pass.

    Parameters
    ----------
    hashes
        Of every input: MD5 of its files by their name relative to it, "" for the input itself (`file_hashes`).

    Raises
    ------
    UserError
        Names the input and how to restore it.
    """
    for attempt in range(1, TRIES + 1):
        wrong = _differing(hashes)
        if not wrong:
            return
        if attempt < TRIES:
            time.sleep(PAUSE)
    path, producer, md5 = wrong
    if damaged := [str(o) for o in _objects(md5) if file_hash(o) != (o.parent.name + o.name).removesuffix(".dir")]:
        # DVC trusts its cache: it would put the damaged copy back, even in the place of what a node makes anew.
        fix = f"DVC's copy is damaged too: rm -f {' '.join(damaged)}; rm -r {path}; dvc repro -s --force {producer}"
    else:
        fix = f"restore it: rm -r {path}; dvc checkout {path}"
    raise UserError(f"{path}, needed by {stage}: its content is not what {producer} made (see dvc.lock); {fix}")


def recorded_file(folder: Path, name: str) -> bytes | None:
    """A file of an output's folder: as it lies there, else as DVC's cache holds it of what dvc.lock names; None where
    neither is."""
    with suppress(OSError):
        return (folder / name).read_bytes()
    try:
        outs = (node.outs.get(folder.as_posix()) for node in read_lock(Path(LOCK)).values())
        entry = next(filter(None, outs))
        listing = {row["relpath"]: row["md5"] for row in json.loads(_object(entry.md5).read_text("utf-8"))}
        return _object(listing[name]).read_bytes()
    except (UserError, StopIteration, OSError, ValueError, KeyError, TypeError):
        return None


def _object(md5: str) -> Path:
    """Where DVC's cache holds what has that hash."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([".dvc/config", ".dvc/config.local"])
    return Path(".dvc") / config.get("cache", "dir", fallback="cache") / "files/md5" / md5[:2] / md5[2:]


def _objects(md5: str) -> list[Path]:
    """The files in DVC's cache that hold an output, as far as they are there."""
    names = [first := _object(md5)]
    if md5.endswith(".dir"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # absent, or damaged, which its own hash tells
            names += [_object(row["md5"]) for row in json.loads(first.read_text("utf-8"))]
    return [name for name in names if name.is_file()]


def _differing(hashes: dict[Path, dict[str, str]]) -> tuple[Path, str, str] | None:
    """The first input that differs, the node that made it, and its MD5 in dvc.lock."""
    try:
        locked = read_lock(Path(LOCK))
    except UserError:
        return None  # none, or half-written: DVC itself refuses a broken one
    for path, files in hashes.items():
        # More than one where dvc.lock still holds a stage that dvc.yaml no longer has: one of them must fit.
        makers = [node for node in locked.values() if path.as_posix() in node.outs]
        known = {node.outs[path.as_posix()].md5 for node in makers}
        by_hand = {_manifested(node, path) for node in makers}
        if known and dvc_hash(files) not in known and tree_hash_of(files) not in by_hand:
            return path, makers[-1].name, makers[-1].outs[path.as_posix()].md5
    return None


def _manifested(node: LockedNode, path: Path) -> str | None:
    """What the manifest beside an output says of it."""
    try:
        return json.loads(Path(node.manifest or "").read_text("utf-8"))["outputs"][path.as_posix()]
    except (OSError, ValueError, KeyError, TypeError):
        return None
