"""Rows of data that people bring: one reader for files, folders and hub datasets.

    for where, row in read("corpus.jsonl.gz", "passages with id and text", Passage): ...      # one at a time
    for where, row in read("owner/name", "rows with a question", split="test"): ...           # as plain dictionaries

A file is a .json list, JSON lines (gzipped or not; a byte-order mark, as some editors write it, is no part of the
text), .csv, .tsv or .parquet; a folder and `owner/name` are what the `datasets` library makes of them. Text that UTF-8,
and so a table, cannot hold (half of a surrogate pair) is refused. What is wrong is told as a ParameterError without a
key: `larpo.errors.at` adds the parameter that names the source, where there is one.
"""

from __future__ import annotations

import gzip
import json
import re
import reprlib
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from larpo.errors import ParameterError, first_error, one_line
from larpo.sources import hub

R = TypeVar("R", bound=BaseModel)
Row = dict[str, Any]
JSON = {".json", ".jsonl", ".gz"}
TABLES = {".csv": {"path": "csv"}, ".tsv": {"path": "csv", "sep": "\t"}, ".parquet": {"path": "parquet"}}
MARK = "\ufeff"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of one half of a surrogate pair; a whole pair has two."""


class Written(float):
    """A number of a JSON text that knows how it is written there."""

    def __new__(cls, text: str) -> Written:
        made = super().__new__(cls, text)
        made.text = text
        return made


def read(
    data: str | Path, what: str, model: type[R] | None = None, *, split: str = "train", config: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(where, row) in the source's order; `where` is the source and the line or the row, for messages.

    JSON lines are read as they are asked for, so memory does not grow with the file.

    Parameters
    ----------
    data
        A path, whose file is read as JSON unless it is .parquet; or text that names a file by its suffix, a folder or
        a hub dataset.
    what
        What rows are expected, for messages: "passages with id and text".
    model
        What a row has to be; keys that it does not have are left out. None: rows stay dictionaries.
    split, config
        Of a folder or a hub dataset.

    Raises
    ------
    ParameterError
        There is no such source, it cannot be read, it has no rows, or a row is not as expected: the first one is named.
    """
    empty = True
    for where, row in _utf8(_numbered(data, what, split, config), data):
        empty = False
        yield where, row if model is None else parse(row, model, what, where)
    if empty:
        raise ParameterError("", f"{data}: no rows; expected {what}")


def read_shuffled(data: str, what: str, seed: int, columns: Collection[str], split: str) -> Iterator[tuple[str, Row]]:
    """As `read`, in an order of the seed's; each of `columns` has to be in the source, if not in every row."""
    if is_json(data):
        found: Any = list(read(data, what))
        known, row_at = list(dict.fromkeys(key for _, row in found for key in row)), found.__getitem__
    else:
        found = _dataset(data, what, split, None)
        known, row_at = found.column_names, lambda i: (f"{data}, row {i}", found[i])
    for column in columns:
        if column not in known:
            raise ParameterError("", f"{data}: no column {column!r}, found {', '.join(known)}; expected {what}")
    yield from _utf8(map(row_at, np.random.default_rng(seed).permutation(len(found)).tolist()), data)


def as_written(value: Any, column: str, where: str) -> str | None:
    """A cell as the text that its author wrote; None where there is none. What was read as something else, from which
    that text is not known, is refused: dates, whole numbers that a column of fractions made `18.0`, lists."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Written):
        if isfinite(value):
            return value.text
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(value)
    elif isinstance(value, float) and isfinite(value) and not value.is_integer():
        short = np.float32(value)
        if float(short) != value or str(short) == repr(
            value
        ):  # else a column of single precision: 0.1 is 0.10000000149
            return repr(value)
    kind, why = type(value).__name__, ""
    if isinstance(value, float):
        kind, why = "float", "; whole numbers beside fractions or blanks, and single precision, are read so"
    raise ParameterError(
        "",
        f"{where}: column {column!r} holds {reprlib.repr(value)} ({kind}{why}); expected text as it is "
        "to be compared: store the column as text",
    )


def parse(row: Row, model: type[R], what: str, where: str) -> R:
    """A row as its model; names `where` it stands and the first key that is wrong."""
    try:
        return model.model_validate(row)
    except ValidationError as error:
        raise ParameterError("", f"{where}: {first_error(error)}; expected {what}") from None


def read_object(path: Path, what: str) -> Row:
    """The one object of a .json file, which may stretch over lines."""
    with _readable(path, lambda: ""):
        text = path.read_bytes().decode().lstrip(MARK)
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ParameterError("", f"{path}: expected an object, {what}, found {reprlib.repr(value)}")
        for key, item in value.items() if _HALF.search(text) else ():
            _check_text(item, f"{path}, item {key}")
    return value


def _check_text(row: Any, where: str) -> None:
    """Refuse half of a surrogate pair in a row, which JSON can escape and no UTF-8 and no table can hold."""
    for column, value in row.items() if isinstance(row, dict) else [("", row)]:
        try:
            json.dumps([column, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ParameterError(
                "",
                f"{where}: column {column!r}: {half!r} is half of a surrogate pair and no text; mend that character or "
                "drop the row",
            ) from None


def is_json(data: str | Path) -> bool:
    suffix = Path(data).suffix
    return suffix in JSON or (isinstance(data, Path) and suffix not in TABLES and not data.is_dir())


def check_exists(data: str) -> str:
    """`data`, refused at once where it is a local path to nothing; whether the hub has a dataset is seen when it is
    read."""
    local = data.startswith((".", "/")) or Path(data).suffix in {*JSON, *TABLES}
    if (local or data.count("/") != 1) and not Path(data).exists():
        raise ParameterError("", f"{data!r} not found; expected a file, a folder or a hub dataset (owner/name)")
    return data


def hub_file(repository: str, name: str) -> Path:
    """One file of a hub dataset, from its cache where it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {"repo_type": "dataset", "revision": hub.revision_of(repository, "dataset")}
    try:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repository, name, local_files_only=True, **wanted))
        hub.offline_where_unreachable()
        return Path(hf_hub_download(repository, name, **wanted))
    except Exception as error:  # noqa: BLE001 - the hub's errors have no common base
        raise hub.NotFetched(
            "", f"cannot fetch {name} of the hub dataset {repository} ({one_line(error)[:120]}); name a local copy"
        ) from None


def _numbered(data: str | Path, what: str, split: str, config: str | None) -> Iterator[tuple[str, Row]]:
    if not is_json(data):
        yield from ((f"{data}, row {i}", row) for i, row in enumerate(_dataset(str(data), what, split, config)))
        return
    for place, row in _json_rows(Path(data), what):
        if not isinstance(row, dict):
            raise ParameterError("", f"{data}, {place}: expected an object, found {reprlib.repr(row)}")
        yield f"{data}, {place}", row


def _json_rows(path: Path, what: str) -> Iterator[tuple[str, Any]]:
    """(line or row, value) of a .json list or of JSON lines."""
    if not path.is_file():
        raise ParameterError("", f"{path}: not found; expected {what}")
    place, first = "", True
    with _readable(path, lambda: place), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        # By bytes: a text may hold U+2028, which JSON leaves as it is and which would end a line of text.
        for number, line in enumerate(file, 1):
            place = f", line {number}"
            # Files that were joined have a mark at the start of each.
            text = line.decode().lstrip(MARK)
            if first and text.lstrip().startswith("["):
                place = ""
                text += file.read().decode()
                halves = _HALF.search(text)
                for i, row in enumerate(_json(text)):
                    if halves:
                        _check_text(row, f"{path}, row {i}")
                    yield f"row {i}", row
            elif text.strip():
                first, row = False, _json(text)
                if _HALF.search(text):
                    _check_text(row, f"{path}{place}")
                yield f"line {number}", row


@contextmanager
def _readable(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """What may be wrong with a file of JSON, told with the `place` that was being read."""
    try:
        yield
    except ParameterError:
        raise
    except UnicodeDecodeError as error:
        wide = "; it looks like UTF-16, save it as UTF-8" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ParameterError(
            "", f"{path}{place()}: not UTF-8 text ({error.reason} at byte {error.start}){wide}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ParameterError(
            "", f"{path}{place()}: not valid JSON ({one_line(error)}); expected a list, or one object per line"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ParameterError("", f"{path}: not readable ({one_line(error)})") from None


def _json(text: str) -> Any:
    return json.loads(text, parse_float=Written, parse_constant=Written)


def _dataset(data: str, what: str, split: str, config: str | None) -> Any:
    """A `datasets.Dataset`: of a .parquet, .csv or .tsv file, a folder or a hub dataset. The cells of CSV are text as
    they are written: nothing guesses numbers, dates or blanks."""
    import datasets

    datasets.disable_progress_bars()  # bars that redraw a line are noise in a log
    local = data.startswith((".", "/")) or data.count("/") > 1
    source: dict[str, Any] = {"path": data, "split": split} | ({"name": config} if config else {})
    if (table := TABLES.get(Path(data).suffix)) and not Path(data).is_dir():
        local, source = True, table | {"data_files": data, "split": "train"}
    if local and not Path(data).exists():
        raise ParameterError("", f"{data}: not found; expected {what}")
    if not Path(data).exists():
        hub.offline_where_unreachable()
        source["revision"] = hub.revision_of(data, "dataset")
    try:
        if source["path"] == "parquet":
            pq.read_schema(data)  # of a file that is none, the library would write a line of its own
        loaded = datasets.load_dataset(**source)
        if loaded.info.builder_name != "csv":
            return loaded
        text = datasets.Features({name: datasets.Value("string") for name in loaded.column_names})
        options = {"features": text, "keep_default_na": False, "na_values": [""], "index_col": False}
        with warnings.catch_warnings():  # of rows with more cells than the header, whose first would name the rows
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return datasets.load_dataset(**source, **options)
    except Exception as error:  # noqa: BLE001 - the errors of files and of the hub have no common base
        reason = one_line(error.__cause__ or error)[:200]
        raise ParameterError(
            "",
            f"cannot load {data!r}, split {source['split']!r} ({reason}); expected {what} in a .json, .jsonl, .gz, "
            ".csv, .tsv or .parquet file, a folder or a hub dataset (owner/name)",
        ) from None


def _utf8(rows: Iterable[tuple[str, Row]], data: str | Path) -> Iterator[tuple[str, Row]]:
    """The text of a dataset is decoded only as its rows are read, so bytes that are none are found here."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise ParameterError(
            "", f"{data}: not UTF-8 text ({error.reason}, byte {error.object[error.start]:#x})"
        ) from None
