"""The tables that nodes exchange: their columns, how they are checked, read and written.

Files are Parquet with a fixed column order, row order and writer settings, and hold no times or machine
names, so the same rows are the same bytes.
"""

import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from larpo.errors import UserError

_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_IDS = pa.list_(pa.int32())
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def _schema(*columns: tuple[str, pa.DataType] | tuple[str, pa.DataType, bool]) -> pa.Schema:
    """Columns as (name, type) or (name, type, nullable); not nullable unless said."""
    return pa.schema([pa.field(c[0], c[1], nullable=len(c) > 2 and bool(c[2])) for c in columns])


_RESPONSE = [
    ("prompt_id", _TEXT),
    ("response_id", _TEXT),
    ("iteration", _INT),
    ("temperature", _FLOAT, True),
    ("seed", _INT, True),
    ("text", _TEXT),
    ("prompt_token_ids", _IDS),
    ("token_ids", _IDS),
    ("finish_reason", _TEXT),
    ("origin", _TEXT),
    ("logp", _FLOAT, True),
]
_PROMPT = [("prompt_id", _TEXT), ("source", _TEXT), ("messages", _MESSAGES), ("answer", _TEXT, True)]
_REWARD = [("reward", _FLOAT), ("correct", _BOOL, True), ("reward_name", _TEXT)]
_OUTPUT = [
    ("prompt_id", _TEXT),
    ("temperature", _FLOAT),
    ("sample", _INT),
    ("turn", _INT),
    ("text", _TEXT),
    ("n_tokens", _INT),
    ("finish_reason", _TEXT),
]

LATER = ("logp",)
"""Columns that tables of older runs do not have; there they are null."""

OUTPUT_KEY = ["prompt_id", "temperature", "sample", "turn"]
"""What tells a policy's answers to a benchmark apart."""

SCHEMAS: dict[str, pa.Schema] = {
    "prompts": _schema(*_PROMPT, ("solution", _TEXT, True)),
    "responses": _schema(*_RESPONSE),
    "rewards": _schema(("response_id", _TEXT), *_REWARD),
    "candidates": _schema(*_RESPONSE, *_REWARD),
    "lists": _schema(("prompt_id", _TEXT), ("rank", _INT), ("response_id", _TEXT), ("reward", _FLOAT), ("role", _TEXT)),
    "reference": _schema(
        ("prompt_id", _TEXT),
        ("response_id", _TEXT),
        ("reference_logp", _FLOAT),
        ("n_tokens", _INT),
        ("mismatched_logp", _FLOAT, True),
    ),
    # Benchmarks: what is asked, what a checkpoint answered, what that is worth.
    "items": _schema(*_PROMPT, ("meta", _TEXT, True)),
    "outputs": _schema(*_OUTPUT, ("prompt_token_ids", _IDS), ("token_ids", _IDS)),
    "evaluations": _schema(
        *_OUTPUT,
        ("messages", _MESSAGES),
        ("answer", _TEXT, True),
        ("parsed", _TEXT, True),
        ("score", _FLOAT),
        ("judgement", _TEXT, True),
    ),
    "scored": _schema(
        ("prompt_id", _TEXT), ("sample", _INT), ("n_tokens", _INT), ("reward", _FLOAT), ("score", _FLOAT)
    ),
    "retrievals": _schema(
        ("query_id", _TEXT),
        ("rank", _INT),
        ("passage_id", _TEXT),
        ("similarity", _FLOAT),
        ("hit_answer", _BOOL),
        ("hit_gold", _BOOL, True),
    ),
}
"""Schema of every table by name. `origin` is `policy` for a sampled response, `gold` for a prompt's own solution, which
has no temperature, no seed and no `logp`: the sum of the log-probabilities of the response's tokens as the engine drew
them, under the model itself (temperature 1, no top-p); null where the engine reports none. A list may hold a response
to another prompt; `reference` then holds its log-probability behind the list's prompt. Its `mismatched_logp` stands on
the row of a list's first response, where params ask for it: log π_ref of the next list's best response. In outputs and
evaluations `sample` is -1 for the greedy output (or the one judged in its place, at a temperature above 0), else 0..N-1
at its temperature; `turn` is 0 for the first answer, r for the answer after r revisions."""

ROW_GROUP = 1 << 16

KEYS: dict[str, list[str]] = {
    "prompts": ["prompt_id"],
    "responses": ["response_id"],
    "rewards": ["response_id"],
    "candidates": ["response_id"],
    "lists": ["prompt_id", "rank"],
    "reference": ["prompt_id", "response_id"],
    "items": ["prompt_id"],
    "outputs": ["prompt_id", "temperature", "sample", "turn"],
    "evaluations": ["prompt_id", "temperature", "sample", "turn"],
    "scored": ["prompt_id", "sample"],
    "retrievals": ["query_id", "rank"],
}
"""Columns whose values identify a row."""


def check(frame: pd.DataFrame, table: str, where: str) -> pa.Table:
    """Check a frame against its schema and return it as an Arrow table with the schema's column order.

    Raises
    ------
    UserError
        A column is missing, unknown, of another type, holds nulls where none may be, or a key repeats.
        The message names `where` (a file or a stage), the column and the first offending row.
    """
    schema = SCHEMAS[table]
    frame = frame.assign(**{c: None for c in LATER if c in schema.names and c not in frame.columns})
    twice = list(dict.fromkeys(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise UserError(f"{where}: table {table!r}: column {twice[0]!r} appears twice; expected each once")
    missing = [c for c in schema.names if c not in frame.columns]
    extra = [c for c in frame.columns if c not in schema.names]
    if missing or extra:
        raise UserError(
            f"{where}: table {table!r} expects columns {', '.join(schema.names)}; "
            + "; ".join(
                f"{what} {', '.join(map(str, names))}"
                for what, names in (("missing", missing), ("unknown", extra))
                if names
            )
        )
    for field in schema:
        if not field.nullable and (null := frame[field.name].isna()).any():
            row = int(null.to_numpy().argmax())
            raise UserError(f"{where}, row {row}: column {field.name!r} is empty; expected {_EXPECTED[field.type]}")
    arrow = pa.table([_column(frame[field.name], field, where) for field in schema], schema=schema)
    _check_keys(arrow.select(KEYS[table]), where)
    return arrow


def _check_keys(keys: pa.Table, where: str) -> None:
    if len(keys.group_by(keys.column_names).aggregate([])) < len(keys):
        frame = keys.to_pandas()
        row = int(frame.duplicated().to_numpy().argmax())
        key = ", ".join(f"{name}={_plain(value)!r}" for name, value in frame.iloc[row].items())
        raise UserError(f"{where}, row {row}: {key} appears twice; {'+'.join(frame)} must be unique")


_EXPECTED = {
    _TEXT: "text",
    _INT: "a whole number",
    _FLOAT: "a finite number",
    _BOOL: "true or false",
    _IDS: "a list of token ids",
    _MESSAGES: "a list of messages with a role and a content, the last not blank",
}
_KINDS = {
    _TEXT: {"string"},
    _INT: {"integer", "floating"},  # a whole number that a join made a float is fine
    _FLOAT: {"floating", "integer", "mixed-integer-float"},
    _BOOL: {"boolean"},
}


def _column(values: pd.Series, field: pa.Field, where: str) -> pa.Array:
    """One column as an Arrow array of exactly its type. Text is never read as a number, nor a truth value;
    lists hold no nulls, messages nothing but a role and a content."""

    def wrong(series: pd.Series) -> bool:
        kinds = _KINDS.get(field.type)
        if kinds is not None and pd.api.types.infer_dtype(series, skipna=True) not in kinds | {"empty"}:
            return True
        if field.type == _MESSAGES and not series.map(_are_messages).all():
            return True
        try:
            array = pa.array(series, type=field.type, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return True
        if field.type == _FLOAT:
            return not np.isfinite(series.dropna().astype(float)).all()
        return field.type == _IDS and array.flatten().null_count > 0

    if len(values) and wrong(values):
        row = next((i for i in range(len(values)) if wrong(values.iloc[i : i + 1])), 0)
        value = values.iloc[row]
        found = reprlib.repr(_plain(value))
        raise UserError(f"{where}, row {row}: column {field.name!r} expects {_EXPECTED[field.type]}, found {found}")
    return pa.array(values if len(values) else [], type=field.type, from_pandas=True)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _are_messages(messages: object) -> bool:
    if isinstance(messages, str) or not isinstance(messages, Iterable):
        return False
    found = list(messages)
    return (
        bool(found)
        and all(
            isinstance(m, dict) and set(m) == {"role", "content"} and all(isinstance(v, str) for v in m.values())
            for m in found
        )
        and bool(found[-1]["content"].strip())
    )


def write(frame: pd.DataFrame, table: str, path: str | Path) -> None:
    """Check and write a table. Rows keep the order they are given in."""
    write_parts([check(frame, table, str(path))], table, path)


def write_parts(parts: Iterable[pa.Table], table: str, path: str | Path) -> int:
    """Write parts of a table, as `scan` yields them, below one another, and return the rows: the bytes of the whole,
    with one row group in memory. UserError where a key repeats."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    schema, keys = SCHEMAS[table], []
    rest = schema.empty_table()
    with pq.ParquetWriter(path, schema, compression="zstd", version="2.6", store_schema=False) as writer:
        for part in parts:
            keys.append(part.select(KEYS[table]))
            rest = pa.concat_tables([rest, pa.table(part.columns, schema=schema)])
            while len(rest) >= ROW_GROUP:
                writer.write_table(rest.slice(0, ROW_GROUP).combine_chunks())
                rest = rest.slice(ROW_GROUP)
        if len(rest) or not sum(map(len, keys)):
            writer.write_table(rest.combine_chunks())
    _check_keys(pa.concat_tables(keys), str(path))
    return sum(map(len, keys))


def read(table: str, path: str | Path, empty: bool = False) -> pd.DataFrame:
    """Read and check a table; token ids come as int32 arrays, messages as lists of dicts. One without rows is refused
    unless it may be `empty`: what is made of it would be as empty, and nobody would know why."""
    frame = pa.concat_tables(scan(table, path, empty=empty)).to_pandas()
    if "messages" in frame:
        frame["messages"] = [[dict(m) for m in messages] for messages in frame["messages"]]
    return frame


def scan(table: str, path: str | Path, columns: Sequence[str] | None = None, empty: bool = False) -> Iterator[pa.Table]:
    """The row groups of a table, checked as `read` checks them, with no Python object per row.

    Parameters
    ----------
    columns
        The only columns that are read and checked, the key's among them; None: all.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro` for the node that makes it, or `dvc pull`")
    schema = SCHEMAS[table] if columns is None else pa.schema([SCHEMAS[table].field(n) for n in columns])
    try:
        with pq.ParquetFile(path) as file:
            if not file.metadata.num_rows and not empty:
                raise UserError(
                    f"{path}: table {table!r} has no rows; expected some, run `dvc repro` for the node that makes it"
                )
            stored = {field.name: field.type for field in file.schema_arrow}
            declared = {field.name: field.type for field in SCHEMAS[table]}
            if twice := [name for name, times in Counter(file.schema_arrow.names).items() if times > 1]:
                raise UserError(
                    f"{path}: table {table!r}: column {twice[0]!r} appears twice; expected each once, "
                    "restore it with `dvc checkout --force`"
                )
            if not stored.items() <= declared.items() or declared.keys() - stored.keys() - set(LATER):
                yield check(file.read().to_pandas(), table, str(path)).select(schema.names)
                return
            keys = [SCHEMAS[table].empty_table().select(KEYS[table])]
            yield schema.empty_table()
            for group in range(file.num_row_groups):
                part = file.read_row_group(group, [name for name in schema.names if name in stored])
                if (fitting := _fitting(part, schema)) is None:
                    break
                keys.append(fitting.select(KEYS[table]))
                yield fitting
            else:
                return _check_keys(pa.concat_tables(keys), str(path))
            check(file.read().to_pandas(), table, str(path))  # says what is wrong, and where
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); "
            "restore it with `dvc checkout --force`"
        ) from None
    raise AssertionError(f"{path}: refused, but for no reason that `check` gives")


def _fitting(part: pa.Table, schema: pa.Schema) -> pa.Table | None:
    """Rows of a file in the order of `schema`; None where a value is not what `check` lets in."""
    columns = []
    for field in schema:
        stored = field.name in part.column_names
        columns.append(values := part[field.name] if stored else pa.chunked_array([pa.nulls(len(part), field.type)]))
        if values.null_count and not field.nullable:
            return None
        for chunk in values.chunks:
            if field.type == _FLOAT and not pc.all(pc.is_finite(chunk), min_count=0).as_py():
                return None
            if field.type == _IDS and chunk.flatten().null_count:
                return None
            if field.type == _MESSAGES and not _all_messages(chunk):
                return None
    return pa.table(columns, schema=schema)


def _all_messages(lists: pa.ListArray) -> bool:
    """`_are_messages` of a whole column."""
    messages = lists.flatten()
    role, content = (messages.field(name) for name in ("role", "content"))
    if messages.null_count or role.null_count or content.null_count:
        return False
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    last = content.take(pa.array(np.cumsum(lengths) - 1))
    return bool((lengths > 0).all()) and pc.all(pc.not_equal(pc.utf8_trim_whitespace(last), ""), min_count=0).as_py()
