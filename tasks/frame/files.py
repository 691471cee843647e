"""Files that a kill, a full disk or a power cut leaves whole or not at all, and how those that are not are told."""

import errno
import hashlib
import io
import json
import os
import re
import resource
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from larpo.workspace.files import rename, sync


def write_part(frame: pd.DataFrame, path: Path) -> None:
    """Write a part of a node's work so that it is there completely or not at all: Parquet behind its own MD5."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    content = buffer.getvalue()
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(hashlib.md5(content).digest() + content)
    rename(temporary, path)


def read_part(path: Path) -> pd.DataFrame | None:
    """A part as it was written; None where it is not there, or is no longer what was written and must be made again."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.md5(content[16:]).digest() != content[:16]:
        _discard(path)
        return None
    return pd.read_parquet(io.BytesIO(content[16:]))


def read_json_part(path: Path) -> Any | None:
    """The same for JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        _discard(path)
        return None


def is_whole_array(path: Path) -> bool:
    """Whether an .npy file has the length that its head tells; one that has not is removed."""
    try:
        np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, EOFError):
        _discard(path)
        return False
    return True


def is_whole_checkpoint(folder: Path) -> bool:
    """Whether every file of a trainer's checkpoint can be read: weights have the length that their head tells, what
    torch saved (a zip) has the checksums that it was saved with."""
    try:
        json.loads((folder / "trainer_state.json").read_text("utf-8"))
        for path in folder.rglob("*"):
            if path.suffix == ".safetensors":
                size = path.stat().st_size
                with path.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    head = json.loads(file.read(min(length, size)))
                ends = [t["data_offsets"][1] for name, t in head.items() if name != "__metadata__"]
                if size != 8 + length + max(ends, default=0):
                    return False
            elif path.suffix in (".pt", ".pth", ".bin") and path.is_file():
                with zipfile.ZipFile(path) as file:
                    if file.testzip() is not None:
                        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return False
    return True


def _discard(path: Path) -> None:
    print(f"{path}: cannot be read, is made again", flush=True)
    path.unlink(missing_ok=True)


def publish(made: Path, path: Path) -> None:
    """Put a finished file or folder in the place of what is there; also where that is another file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in _files(made):
        sync(file)
    beside = path.with_name(f".{path.name}.new")
    remove(beside)  # of a run that was killed while it copied
    if made.stat().st_dev != path.parent.stat().st_dev:
        try:
            shutil.copytree(made, beside) if made.is_dir() else shutil.copy2(made, beside)
            for file in _files(beside):
                sync(file)
        except BaseException:
            remove(beside)  # half a copy, and what fills the disk
            raise
        made = beside
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(made, path)
    sync(path.parent)


def check_writable(folder: Path) -> None:
    """OSError where nothing can be put into `folder`, or into the folder that it would be made in."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK):
        number = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(there))


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(path: Path) -> Iterator[Path]:
    yield from (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


# What goes wrong with a disk, in words, and what helps.
REASONS = {
    errno.ENOSPC: ("the disk is full", "make space"),
    errno.EDQUOT: ("the disk quota is used up", "make space"),
    errno.EFBIG: ("the file is larger than this process may write", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EACCES: ("no permission", "make it accessible to this user"),
    errno.EPERM: ("not permitted", "make it accessible to this user"),
    errno.EIO: ("the disk does not answer (input/output error)", "check the disk"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n)"),
    errno.ESTALE: ("the network file system lost it", "mount it again"),
}
FULL = 1 << 20  # bytes left where an error that names no cause is put down to a full disk
IN_RUST = re.compile(r"[Oo]s (?:error |\{ code: )(\d+)")  # tokenizers, safetensors
# Torch, and SQLite in DVCLive, say only that they could not write.
UNNAMED = re.compile(r"PytorchStreamWriter|inline_container|iostream error|disk I/O error|database or disk is full")


def disk_fault(error: BaseException, *folders: Path) -> str | None:
    """One line for an error of the file system: where, what, and what to do; None for every other error.

    Parameters
    ----------
    folders
        Where the command writes: the fullest is named where the error names no path.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = _number(seen, folders)
        if number in REASONS:
            reason, fix = REASONS[number]
            # Of two names, as of a copy, the second is written.
            path = getattr(seen, "filename2", None) or getattr(seen, "filename", None)
            where = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes) else str(_fullest(folders))
            return f"{where}: {reason}; {fix} and run again: finished parts are kept in scratch/"
        seen = seen.__cause__ or seen.__context__
    return None


def _number(error: BaseException, folders: tuple[Path, ...]) -> int | None:
    """The system's number of an error. Libraries that are not written in Python keep it in their text alone."""
    if isinstance(error, OSError):
        if error.errno is not None:
            return error.errno
    elif found := IN_RUST.search(str(error)):
        return int(found[1])
    if UNNAMED.search(str(error)):
        if shutil.disk_usage(_fullest(folders)).free < FULL:
            return errno.ENOSPC
        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            return errno.EFBIG
    return None


def _fullest(folders: tuple[Path, ...]) -> Path:
    there = [next(p for p in (f.absolute(), *f.absolute().parents) if p.exists()) for f in folders]
    return min(there, key=lambda p: shutil.disk_usage(p).free)
