"""How many rows a data set has: counted where it lies here as a file, else its known size, else not known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from larpo.plan.assumptions import Assumptions

COUNTED_BYTES = 256 * 2**20  # a larger text file is not read through for its rows


def is_file(data: str) -> bool:
    """Whether a data set's name means a file or folder of one's own, and no hub id (owner/name)."""
    suffixes = {".json", ".jsonl", ".gz", ".parquet"}
    return data.startswith((".", "/")) or Path(data).suffix in suffixes or data.count("/") != 1 or Path(data).exists()


def rows_of(data: str | None, a: Assumptions) -> int | None:
    """Rows of a hub data set or file; `items` of the assumptions goes before what is counted."""
    if data is None:
        return None
    if data in a.items:
        return a.items[data]
    return _counted(Path(data))


def _counted(path: Path) -> int | None:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_metadata(path).num_rows
        if path.suffix not in (".json", ".jsonl", ".gz") or path.stat().st_size > COUNTED_BYTES:
            return None
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            if path.name.removesuffix(".gz").endswith(".json") and file.read(1) == b"[":
                file.seek(0)
                return len(json.load(file))
            file.seek(0)
            return sum(1 for line in file if line.strip())
    except (OSError, ValueError):
        return None


def unknown_size(data: str, key: str) -> str:
    """Why a number is not known, and how to give it."""
    return f"{key}: the size of {data} is not known; --assume items.{data}=N"
