"""Whether a node's inputs are the bytes that the nodes before it made.

DVC knows a file by its time and size and reads it only where these changed; a bit that a disk flipped, or a cache
object that is no longer what its name says, goes unnoticed. A node reads its inputs from end to end anyway.
"""

from __future__ import annotations

import configparser
import json
import time
from pathlib import Path
from typing import Any

import yaml

from larpo.errors import UserError
from larpo.hashing import dvc_hash, file_hash, tree_hash_of

LOCK = Path("dvc.lock")
TRIES, PAUSE = 4, 0.5  # dvc.lock is written in place: beside other stages of a run it may be seen half-written


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


def _objects(md5: str) -> list[Path]:
    """The files in DVC's cache that hold an output, as far as they are there."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([".dvc/config", ".dvc/config.local"])
    cache = Path(".dvc") / config.get("cache", "dir", fallback="cache") / "files/md5"
    first = cache / md5[:2] / md5[2:]
    names = [first]
    if md5.endswith(".dir"):
        try:
            rows = json.loads(first.read_text("utf-8"))
            names += [cache / row["md5"][:2] / row["md5"][2:] for row in rows]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # absent, or damaged, which its own hash tells
    return [name for name in names if name.is_file()]


def _differing(hashes: dict[Path, dict[str, str]]) -> tuple[Path, str, str] | None:
    """The first input that differs, the node that made it, and its MD5 in dvc.lock."""
    made = [(name, {o.get("path"): o.get("md5") for o in s.get("outs") or []}) for name, s in _stages().items()]
    for path, files in hashes.items():
        # More than one where dvc.lock still holds a stage that dvc.yaml no longer has: one of them must fit.
        named = [(name, outs) for name, outs in made if outs.get(path.as_posix())]
        known = {outs[path.as_posix()] for _, outs in named}
        by_hand = {found for _, outs in named for found in _manifested(outs, path)}
        if known and dvc_hash(files) not in known and tree_hash_of(files) not in by_hand:
            name, outs = named[-1]
            return path, name, outs[path.as_posix()]
    return None


def _manifested(outs: dict[str, str], path: Path) -> list[str]:
    """What the manifest beside an output says of it."""
    found = []
    for out in outs:
        if out.endswith(".manifest.json"):
            try:
                found.append(json.loads(Path(out).read_text("utf-8"))["outputs"][path.as_posix()])
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return found


def _stages() -> dict[str, dict[str, Any]]:
    try:
        content = yaml.load(LOCK.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return content["stages"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}  # none, or half-written: DVC itself refuses a broken one
