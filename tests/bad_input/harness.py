"""The frame around every row of bad input: spoil a finished run, run one command, and see what it says and leaves."""

import contextlib
import hashlib
import importlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tasks.frame.node import command


@dataclass(frozen=True)
class Case:
    """One row: how the input is spoilt (in the run's folder, which is the working folder), what is run, and words that
    its one line must hold. `run` is a node and its key (`sample 1`) or a command (`larpo plan ...`)."""

    name: str
    spoil: Callable[[], Any]
    run: str
    words: tuple[str, ...]


def rows(*cases: tuple[str, Callable[[], Any], str, tuple[str, ...]]) -> pytest.MarkDecorator:
    """A table of cases as the parameter `case` of a test."""
    made = [Case(*case) for case in cases]
    assert len({case.name for case in made}) == len(made)
    return pytest.mark.parametrize("case", made, ids=lambda case: case.name)


def refused(case: Case) -> str:
    """Run a case; returns its line. Status 2, one line, no traceback, no file written, changed or removed outside of
    scratch/, which is no output."""
    case.spoil()
    before = snapshot()
    status, said = invoke(case.run.split())
    assert status == 2, f"status {status}: {said}"
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    for word in case.words:
        assert word in lines[0], f"{word!r} not in {lines[0]!r}"
    assert snapshot() == before
    return lines[0]


def snapshot() -> dict[str, str]:
    """Hash of every file of the working folder by name; what is no output of the node, scratch, a judge's replies and
    the records of `inputs`, left out."""
    files = (p for p in Path().rglob("*") if p.is_file() and p.parts[0] not in ("scratch", "judgements"))
    kept = (p for p in files if not p.as_posix().startswith("data/inputs"))
    return {p.as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


def invoke(arguments: list[str]) -> tuple[int, str]:
    """(exit status, what stderr got) of a command, in this process."""
    name, *rest = arguments
    if name == "larpo":
        run = importlib.import_module("flows.cli").app
    elif name.startswith("flows."):
        main = importlib.import_module(name).main
        run = lambda: sys.exit(main())  # noqa: E731
    else:
        module = importlib.import_module(f"tasks.{name}")
        run = lambda: command(module.main)  # noqa: E731
    argv, sys.argv = sys.argv, [name, *rest]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            run()
    except SystemExit as ended:
        return (ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1), said.getvalue()
    finally:
        sys.argv = argv
    return 0, said.getvalue()


def nothing() -> None:
    """The command itself is what is wrong."""


def param(dotted: str, value: Any) -> Callable[[], None]:
    """Set a key of params.yaml."""
    return params({dotted: value})


def params(changes: dict[str, Any]) -> Callable[[], None]:
    """Set keys of params.yaml; missing sections are made. A list's place is its number."""

    def spoil() -> None:
        raw = yaml.safe_load(Path("params.yaml").read_text())
        for dotted, value in changes.items():
            *path, last = dotted.split(".")
            place = raw
            for key in path:
                place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
            place[last] = value
        Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))

    return spoil


def text(path: str, content: str | bytes) -> Callable[[], None]:
    """Replace a file."""

    def spoil() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)

    return spoil


def replaced(path: str, old: str, new: str) -> Callable[[], None]:
    def spoil() -> None:
        content = Path(path).read_text()
        assert content.count(old) == 1
        Path(path).write_text(content.replace(old, new))

    return spoil


def table(path: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[], None]:
    """Change a table as another program might: without our checks."""

    def spoil() -> None:
        frame = change(pq.read_table(path).to_pandas())
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)

    return spoil


def cell(path: str, row: int, column: str, value: Any) -> Callable[[], None]:
    """Set one cell of a table."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].tolist()
        values[row] = value
        return frame.assign(**{column: pd.Series(values, dtype=object) if value is None else values})

    return table(path, change)


def cut(path: str, size: int) -> Callable[[], None]:
    """Keep the first `size` bytes of a file."""
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:size])


def both(*steps: Callable[[], Any]) -> Callable[[], None]:
    def spoil() -> None:
        for step in steps:
            step()

    return spoil
