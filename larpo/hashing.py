"""Identities: every id in the project is a hash of content, never a counter or a clock."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def digest(*parts: Any, length: int = 16) -> str:
    """Hex digest of a sequence of JSON-able parts; stable across machines and Python versions."""
    data = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(data.encode("utf-8")).hexdigest()[:length]


def seed_of(*parts: Any) -> int:
    """A 31-bit seed derived from its parts, so that no two uses of a run's seed share a random stream."""
    return int(digest(*parts, length=8), 16) & 0x7FFFFFFF


def unit_interval(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts alone: decides splits without any random state."""
    return int(digest(*parts, length=13), 16) / 16**13


def file_hash(path: str | Path) -> str:
    """MD5 of a file, the digest that dvc.lock holds for the same file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


def file_hashes(
    path: str | Path, only: Iterable[str] | None = None, hash_of: Callable[[Path], str] = file_hash
) -> dict[str, str]:
    """MD5 of every file in a folder by its relative name; of a file itself under the name "".

    Parameters
    ----------
    only
        File names to consider in a folder, `None` for all.
    """
    path = Path(path)
    if path.is_file():
        return {"": hash_of(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file() and (only is None or p.name in set(only)))
    return {p.relative_to(path).as_posix(): hash_of(p) for p in files}


class HashMemory:
    """MD5s of files that are looked at often: one whose size, time and place on the disk are as they were is not read
    again. `save` keeps them in a file for the next process; one that cannot be read is as good as none."""

    SETTLED = 2_000_000_000
    """Nanoseconds after which a file that is written once more has another time."""

    def __init__(self, path: Path):
        self.path, self._seen = path, {}
        try:
            self._known: dict[str, list] = dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def file_hash(self, path: Path) -> str:
        stat, place = path.stat(), str(path.resolve())
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        *before, known = self._known.get(place) or [None]
        md5 = known if before == state else file_hash(path)
        if time.time_ns() - stat.st_mtime_ns > self.SETTLED:
            self._seen[place] = [*state, md5]
        return md5

    def tree_hash(self, path: str | Path) -> str:
        return tree_hash_of(file_hashes(path, hash_of=self.file_hash))

    def save(self) -> None:
        if self._seen != self._known:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self._seen), "utf-8")


def tree_hash(path: str | Path, only: Iterable[str] | None = None) -> str:
    """Hash of a file, or of every file in a folder with its relative name; `only` as in `file_hashes`."""
    return tree_hash_of(file_hashes(path, only))


def tree_hash_of(hashes: dict[str, str]) -> str:
    """`tree_hash` from what `file_hashes` returned."""
    return hashes[""] if "" in hashes else digest([list(item) for item in hashes.items()], length=32)


def dvc_object(hashes: dict[str, str]) -> bytes:
    """What DVC's cache holds of a folder whose files have these hashes by relative name (with `/`)."""
    rows = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes)]
    return json.dumps(rows, sort_keys=True).encode("utf-8")


def dvc_hash(hashes: dict[str, str]) -> str:
    """What dvc.lock holds for the file or folder that `file_hashes` read."""
    return hashes[""] if "" in hashes else hashlib.md5(dvc_object(hashes)).hexdigest() + ".dir"
