"""Files that a kill or a power cut leaves whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON so that no reader sees half a file."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write text so that no reader sees half of it; makes the folder that it goes into."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8")
    rename(temporary, path)


def rename(temporary: Path, path: Path) -> None:
    """Give a finished file its name. Its content is on the disk before: after a power cut a name without content
    would pass for finished work."""
    sync(temporary)
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(handle)
