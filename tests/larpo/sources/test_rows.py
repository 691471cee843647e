"""One reader of rows: every form of file gives the same rows, and the first wrong one is named with its place."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset
from pydantic import BaseModel

from larpo.errors import ParameterError, at
from larpo.sources.rows import check_exists, hub_file, read, read_shuffled

# U+2028 ends a line for `str.splitlines`, and a date is text: neither may change.
ROWS = [{"id": i, "text": f"a\u2028b 2024-01-0{i + 1} ä"} for i in range(6)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


class Item(BaseModel):
    id: int
    text: str


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture(params=["jsonl", "blank lines", "with a mark", "gz", "json", "parquet", "folder"])
def source(request, tmp_path) -> str:
    path = tmp_path / "rows.jsonl"
    if request.param == "parquet":
        path = tmp_path / "rows.parquet"
        pd.DataFrame(ROWS).to_parquet(path)
    elif request.param == "folder":
        path = tmp_path / "folder"
        path.mkdir()
        pd.DataFrame(ROWS).to_parquet(path / "train.parquet")
    elif request.param == "gz":
        write(path := tmp_path / "rows.jsonl.gz", gzip.compress(LINES.encode(), mtime=0))
    elif request.param == "json":
        write(path := tmp_path / "rows.json", json.dumps(ROWS, indent=1).encode())
    else:
        text = LINES.replace("\n", "\r\n\n") if request.param == "blank lines" else LINES
        write(path, text.encode("utf-8-sig" if request.param == "with a mark" else "utf-8"))
    return str(path)


def test_every_form_gives_the_same_rows(source):
    assert [row for _, row in read(source, "rows")] == ROWS
    assert [item.model_dump() for _, item in read(source, "rows", Item)] == ROWS
    shuffled = Dataset.from_list(ROWS).shuffle(seed=3)["id"]
    assert [row["id"] for _, row in read_shuffled(source, "rows", 3, ["id"], "train")] == list(shuffled)
    with pytest.raises(ParameterError, match="no column 'no', found id, text"):
        next(read_shuffled(source, "rows", 3, ["text", "no"], "train"))


def test_lines_are_read_as_they_are_asked_for(tmp_path):
    path = write(tmp_path / "rows.jsonl", LINES.encode() + b"oops\n")
    assert [where for where, _ in islice(read(path, "rows"), 2)] == [f"{path}, line 1", f"{path}, line 2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", b'{"id": 1, "text": "x"}\n\n{"id": 2}\n', r"r\.jsonl, line 3: text: field required; expected"),
        ("r.json", b'[{"id": 1, "text": "x"}, {"id": "y", "text": "x"}]', r"r\.json, row 1: id: .*found 'y'"),
        ("r.jsonl", b"{}\n[1]\n", r"r\.jsonl, line 2: expected an object, found \[1\]"),
        ("r.jsonl", b'{"id": 1}\n{"id"', r"r\.jsonl, line 2: not valid JSON .*one object per line"),
        ("r.json", b'[{"id": 1},\n', r"r\.json: not valid JSON"),
        ("r.jsonl", b'{"id":' + b"[" * 100_000, r"r\.jsonl, line 1: not valid JSON"),
        ("r.jsonl", b"\n\n", r"r\.jsonl: no rows; expected items"),
        ("r.jsonl", '{"text": "Größe"}'.encode("latin-1"), r"r\.jsonl, line 1: not UTF-8 text .* at byte 12"),
        ("r.json", b'[{"text": "\n\xff"}]', r"r\.json: not UTF-8 text"),
        ("r.jsonl", '{"text": "x"}'.encode("utf-16"), r"r\.jsonl, line 1: not UTF-8 .*UTF-16, save it as UTF-8"),
        (
            "r.jsonl",
            rb'{"id": 1, "text": "x"}' + b"\n" + rb'{"id": 2, "text": "\ud835 "}',
            r"line 2: column 'text': '.ud835'",
        ),
        ("r.json", rb'[{"id": 1, "m": [{"\uDC00": 1}]}]', r"r\.json, row 0: column 'm': .*half of a surrogate pair"),
        ("r.jsonl.gz", b"plain", r"r\.jsonl\.gz: not readable"),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:40], r"r\.jsonl\.gz: not readable"),
        ("r.csv", b"id,text\n1,x,more\n", r"r\.csv.*Length of header or names does not match length of data"),
        ("r.parquet", b"PAR1", r"cannot load '.*r\.parquet'.*expected items in a \.json"),
    ],
)
def test_the_first_wrong_row_is_named(tmp_path, name, content, words):
    path = write(tmp_path / name, content)
    model = None if b"{}" in content or b'"id": 1}' in content else Item
    with pytest.raises(ParameterError, match=words) as caught, at("data", "params.yaml"):
        list(read(str(path), "items", model))
    assert str(caught.value).startswith("params.yaml: data: ") and "\n" not in str(caught.value)


def test_what_utf8_holds_stays_as_it_is(tmp_path):
    r"""A whole pair is one character, an escaped backslash no pair; NUL is text; joined files have a mark inside."""
    lines = rb'{"text": "\ud835\udc00 \\ud835"}' + b"\n\xef\xbb\xbf" + rb'{"text": "a\u0000b"}'
    path = write(tmp_path / "rows.jsonl", lines)
    assert [row["text"] for _, row in read(path, "rows")] == ["\U0001d400 \\ud835", "a\0b"]


@pytest.mark.parametrize("name", ["no.jsonl", "no.parquet", "./no", "a/b/c"])
def test_a_source_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reads in (lambda: next(read(name, "items")), lambda: check_exists(name)):
        with pytest.raises(ParameterError, match=f"{name}'?:? not found; expected"):
            reads()
    with pytest.raises(ParameterError, match="not found; expected items"):
        next(read(tmp_path / "outputs", "items"))  # a path is never a name on the hub
    assert check_exists("owner/name") == "owner/name"


def test_a_hub_file_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://nowhere.invalid")
    with pytest.raises(ParameterError, match=r"cannot fetch f\.json of the hub dataset no/such .*name a local copy"):
        hub_file("no/such", "f.json")
