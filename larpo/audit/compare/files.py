"""Where two versions of an output part, in one line: the byte, the row, the tensor, the key or the file.

Files of any size: bytes are read in chunks, tables in batches of rows, tensors in slices.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from larpo import tables
from larpo.audit.compare.values import contrast, first_key

CHUNK = 1 << 20  # bytes
ROWS = 1 << 14
ELEMENTS = 1 << 24  # of a tensor at once


class Unreadable(Exception):
    """A file is not what its name says; the message tells why."""


def _reason(error: Exception) -> str:
    """In one line that is the same every time: no addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))[:120] or type(error).__name__


def first_difference(expected: Path, found: Path) -> str | None:
    """The first place where two files or folders differ, as one line; None where they are the same bytes.

    Rows and bytes count from 0. Folders name the first file, in the order of the names, that is missing, extra or
    different. Where rows, tensors or values are the same and only their encoding differs, the line says so.
    """
    expected, found = Path(expected), Path(found)
    if expected.is_dir() or found.is_dir():
        return _folders(expected, found)
    if not (expected.is_file() and found.is_file()):
        return f"{expected.name}: {'missing' if expected.is_file() else 'extra'}"
    byte = first_byte(expected, found)
    if byte is None:
        return None
    inside = INSIDE.get(expected.suffix)
    if inside is None:
        return byte
    try:
        difference = inside(expected, found)
    except Unreadable as error:
        return f"{error}; {byte}"
    return difference or f"same {CONTENT[expected.suffix]}, written differently: {byte}"


def same_content(expected: Path, found: Path) -> bool:
    """Whether two files of rows, tensors or JSON hold the same, however it is written."""
    inside = INSIDE.get(expected.suffix)
    try:
        return inside is not None and inside(expected, found) is None
    except Unreadable:
        return False


def first_byte(expected: Path, found: Path) -> str | None:
    """The first byte that differs, with both values and lengths."""
    sizes = expected.stat().st_size, found.stat().st_size
    lengths = f"{sizes[0]} bytes" if sizes[0] == sizes[1] else f"expected {sizes[0]} bytes, found {sizes[1]}"
    with open(expected, "rb") as a, open(found, "rb") as b:
        for start in range(0, min(sizes), CHUNK):
            x, y = a.read(CHUNK), b.read(CHUNK)
            if x == y:
                continue
            n = min(len(x), len(y))
            other = np.frombuffer(x, np.uint8, n) != np.frombuffer(y, np.uint8, n)
            if other.any():
                at = int(other.argmax())
                return f"byte {start + at}: expected 0x{x[at]:02x}, found 0x{y[at]:02x} ({lengths})"
    return None if sizes[0] == sizes[1] else f"{lengths}; the first {min(sizes)} are the same"


def files_of(folder: Path) -> list[str]:
    """Names of the files below a folder, relative to it, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _folders(expected: Path, found: Path) -> str | None:
    things = ["a folder" if p.is_dir() else "a file" if p.is_file() else "nothing" for p in (expected, found)]
    if things[0] != things[1]:
        return f"{expected.name}: expected {things[0]}, found {things[1]}"
    names, others = set(files_of(expected)), set(files_of(found))
    for name in sorted(names | others):
        if name not in others:
            return f"{name}: missing"
        if name not in names:
            return f"{name}: extra"
        if difference := first_difference(expected / name, found / name):
            return f"{name}: {difference}"
    return None


# Tables


def table_of(schema: pa.Schema) -> str | None:
    """Which table of larpo.tables has these columns, today or in an older run."""
    return next(
        (
            name
            for name, known in tables.SCHEMAS.items()
            if schema.names in (known.names, [c for c in known.names if c not in tables.LATER])
        ),
        None,
    )


def batches(expected: Path, found: Path) -> Iterator[tuple[int, pa.Table, pa.Table]]:
    """(first row, rows of `expected`, as many of `found`), the last pair of possibly unequal length.

    Raises
    ------
    Unreadable
        One is no Parquet file; the message says which.
    """
    start = 0
    for x, y in zip_longest(_tables(expected, "expected"), _tables(found, "found")):
        x, y = (y.slice(0, 0) if x is None else x), (x.slice(0, 0) if y is None else y)
        yield start, x, y
        start += max(len(x), len(y))


def _tables(path: Path, what: str) -> Iterator[pa.Table]:
    """A file in tables of exactly ROWS rows, the last one shorter; at least one, for the columns."""
    try:
        with pq.ParquetFile(path) as file:
            schema, rest = file.schema_arrow, []
            for batch in file.iter_batches(ROWS):
                batch.validate(full=True)
                rest.append(batch)
                if sum(map(len, rest)) >= ROWS:
                    table = pa.Table.from_batches(rest)
                    yield table.slice(0, ROWS)
                    rest = table.slice(ROWS).to_batches()
            yield pa.Table.from_batches(rest, schema)
    except Exception as error:  # noqa: BLE001 - of a file that somebody may have tampered with, any may come
        raise Unreadable(f"{what} {path.name} is not a readable Parquet file ({_reason(error)})") from None


def _parquet(expected: Path, found: Path) -> str | None:
    for start, x, y in batches(expected, found):
        if start == 0 and not x.schema.equals(y.schema):
            known, other = _columns(x.schema), _columns(y.schema)
            if known != other:
                return f"columns: expected {', '.join(known)}; found {', '.join(other)}"
        n = min(len(x), len(y))
        row = first_row(x.slice(0, n), y.slice(0, n))
        if row is not None:
            return row_line(x, y, row, start)
        if len(x) != len(y):
            extra = "missing" if len(x) > len(y) else "added"
            totals = [pq.read_metadata(p).num_rows for p in (expected, found)]
            return f"row {start + n}: {extra}; expected {totals[0]} rows, found {totals[1]}"
    return None


def _columns(schema: pa.Schema) -> list[str]:
    return [f"{field.name} {field.type}" for field in schema]


def first_row(x: pa.Table, y: pa.Table) -> int | None:
    """The first row in which two tables of equal length and columns differ; by halving, so in O(n)."""

    def equal(start: int, length: int) -> bool:
        a, b = x.slice(start, length), y.slice(start, length)
        return all(a[name].equals(b[name]) for name in x.column_names)

    if equal(0, len(x)):
        return None
    low, high = 0, len(x)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if equal(low, middle - low) else (low, middle)
    return low


def row_line(x: pa.Table, y: pa.Table, row: int, start: int = 0, column: str | None = None) -> str:
    """What differs in row `row` of two batches that begin at row `start`: in `column`, else the first that does."""
    name = column or next(c for c in x.column_names if not x[c].slice(row, 1).equals(y[c].slice(row, 1)))
    table = table_of(x.schema)
    keys = [] if table is None else [k for k in tables.KEYS[table] if k != name]
    ids = ", ".join(f"{k} {x[k][row].as_py()}" for k in keys)
    differs = contrast(x[name][row].as_py(), y[name][row].as_py())
    return f"row {start + row}{f' ({ids})' if ids else ''}, column {name}: {differs}"


# Tensors


def arrays(expected: Path, found: Path) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(tensor, position of its slice along the first axis, values, values) of two safetensors or .npy files.

    Values are float64, or the integers that are stored. One tensor at a time, in slices.

    Raises
    ------
    Unreadable
        One is no such file, or names, shapes or types of the tensors differ.
    """
    if expected.suffix == ".npy":
        try:
            x, y = np.load(expected, mmap_mode="r"), np.load(found, mmap_mode="r")
        except Exception as error:  # noqa: BLE001 - as above
            raise Unreadable(f"not a readable array ({_reason(error)})") from None
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            raise Unreadable(f"expected {x.dtype} {list(x.shape)}, found {y.dtype} {list(y.shape)}")
        for start, stop in _slices(x.shape):
            yield "array", start, _wide(x[start:stop]), _wide(y[start:stop])
        return
    from safetensors import safe_open

    try:
        with safe_open(expected, "pt") as a, safe_open(found, "pt") as b:
            names, others = a.offset_keys(), set(b.keys())
            for name in [*names, *sorted(others - set(names))]:
                if name not in others or name not in names:
                    raise Unreadable(f"tensor {name}: {'missing' if name in names else 'extra'}")
            for name in names:
                x, y = a.get_slice(name), b.get_slice(name)
                if (x.get_dtype(), x.get_shape()) != (y.get_dtype(), y.get_shape()):
                    raise Unreadable(
                        f"tensor {name}: expected {x.get_dtype()} {x.get_shape()}, "
                        f"found {y.get_dtype()} {y.get_shape()}"
                    )
                if not x.get_shape():
                    yield name, 0, _wide(a.get_tensor(name).reshape(1)), _wide(b.get_tensor(name).reshape(1))
                    continue
                for start, stop in _slices(x.get_shape()):
                    yield name, start, _wide(x[start:stop]), _wide(y[start:stop])
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise Unreadable(f"not a readable safetensors file ({_reason(error)})") from None


def _slices(shape: tuple[int, ...] | list[int]) -> Iterator[tuple[int, int]]:
    step = max(1, ELEMENTS // max(1, math.prod(shape[1:])))
    yield from ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _wide(values: Any) -> np.ndarray:
    """Floats as float64 (bfloat16 is none of NumPy's types), everything else as it is."""
    if not isinstance(values, np.ndarray):
        values = (values.double() if values.is_floating_point() else values).numpy()
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def _tensors(expected: Path, found: Path) -> str | None:
    first, largest, differing, seen = None, 0.0, set(), set()
    for name, start, x, y in arrays(expected, found):
        seen.add(name)
        other = (x != y) & ~((x != x) & (y != y))
        if not other.any():
            continue
        differing.add(name)
        delta = np.abs(x.astype(np.float64) - y.astype(np.float64))
        largest = math.nan if np.isnan(delta[other]).any() else max(largest, float(delta[other].max()))
        if first is None:
            place = np.unravel_index(int(other.argmax()), x.shape)
            index = [int(place[0]) + start, *map(int, place[1:])]
            first = f"tensor {name}, index {index}: expected {x[place]!s}, found {y[place]!s}"
    return first and f"{first}; {len(differing)} of {len(seen)} tensors differ, largest |Δ| {largest:.3g}"


# JSON


def _json(expected: Path, found: Path) -> str | None:
    values = []
    for path, what in ((expected, "expected"), (found, "found")):
        try:
            values.append(json.loads(path.read_text("utf-8")))
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"{what} {path.name} is not JSON ({_reason(error)})") from None
    return first_key(*values)


INSIDE: dict[str, Callable[[Path, Path], str | None]] = {
    ".parquet": _parquet,
    ".safetensors": _tensors,
    ".npy": _tensors,
    ".json": _json,
}
"""Suffix → how its content is compared, where the bytes differ."""
CONTENT = {".parquet": "rows", ".safetensors": "tensors", ".npy": "values", ".json": "values"}
