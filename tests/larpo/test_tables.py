"""Tables: the same rows are the same bytes; what does not fit is refused with its row."""

import contextlib

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo import tables
from larpo.errors import UserError

PROMPTS = pd.DataFrame(
    {
        "prompt_id": ["a", "b"],
        "source": ["s", "s"],
        "messages": [[{"role": "user", "content": "1 + 1 ="}], [{"role": "user", "content": "é\n"}]],
        "answer": ["2", None],
        "solution": [None, "the answer is 2"],
    }
)


def test_round_trip_and_column_order(tmp_path):
    path = tmp_path / "p.parquet"
    tables.write(PROMPTS[PROMPTS.columns[::-1]], "prompts", path)
    again = tables.read("prompts", path)
    assert again.columns.tolist() == tables.SCHEMAS["prompts"].names
    assert again["messages"].tolist() == PROMPTS["messages"].tolist()
    assert again["answer"].tolist()[0] == "2" and pd.isna(again["answer"][1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False)), max_size=8))
def test_same_rows_same_bytes(tmp_path_factory, rows):
    frame = pd.DataFrame(
        [(f"r{i}", reward, None, name) for i, (name, reward) in enumerate(rows)],
        columns=["response_id", "reward", "correct", "reward_name"],
    )
    folder = tmp_path_factory.mktemp("bytes")
    tables.write(frame, "rewards", folder / "1.parquet")
    # What a frame went through (index, categories, a file) leaves no trace.
    tables.write(tables.read("rewards", folder / "1.parquet", empty=True), "rewards", folder / "2.parquet")
    assert (folder / "1.parquet").read_bytes() == (folder / "2.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="answer"), "missing answer"),
        (lambda f: f.assign(extra=1), "unknown extra"),
        (lambda f: f.assign(source=[None, "s"]), r"row 0: column 'source' is empty; expected text"),
        (lambda f: f.assign(answer=[1, 2]), r"row 0: column 'answer' expects text, found 1"),
        (lambda f: f.assign(prompt_id=["a", "a"]), r"row 1: prompt_id='a' appears twice"),
        (lambda f: f.assign(messages=[f["messages"][0], []]), r"row 1: column 'messages' expects a list of messages"),
        (lambda f: pd.concat([f, f[["answer"]]], axis=1), "'answer' appears twice"),
    ],
)
def test_refusals_name_file_row_and_column(tmp_path, change, message):
    path = tmp_path / "p.parquet"
    with pytest.raises(UserError, match=message) as caught:
        tables.write(change(PROMPTS), "prompts", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not path.exists()


def test_rewards_that_are_no_numbers_are_refused(tmp_path):
    frame = pd.DataFrame({"response_id": ["r"], "reward": [float("inf")], "correct": [None], "reward_name": ["x"]})
    with pytest.raises(UserError, match=r"row 0: column 'reward' expects a finite number, found inf"):
        tables.write(frame, "rewards", tmp_path / "r.parquet")


REWARDS = pd.DataFrame(
    {"response_id": [f"r{i}" for i in range(10)], "reward": 0.5, "correct": [True, None] * 5, "reward_name": "x"}
)


def test_parts_of_any_size_are_the_bytes_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP", 3)
    whole, path = tables.check(REWARDS, "rewards", "test"), tmp_path / "r.parquet"
    made = set()
    for cut in range(11):
        assert tables.write_parts([whole.slice(0, cut), whole.slice(cut)], "rewards", path) == 10
        made.add(path.read_bytes())
    assert len(made) == 1
    assert [len(part) for part in tables.scan("rewards", path) if len(part)] == [3, 3, 3, 1]
    pd.testing.assert_frame_equal(tables.read("rewards", path), whole.to_pandas())
    (some,) = {tuple(part.column_names) for part in tables.scan("rewards", path, ["response_id", "correct"])}
    assert some == ("response_id", "correct")
    with pytest.raises(UserError, match=r"row 10: response_id='r0' appears twice"):
        tables.write_parts([whole, whole.slice(0, 1)], "rewards", path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("response_id", "r1", r"row 7: response_id='r1' appears twice"),
        ("response_id", None, r"row 7: column 'response_id' is empty; expected text"),
        ("reward", float("nan"), r"row 7: column 'reward' is empty; expected a finite number"),
        ("reward", float("inf"), r"row 7: column 'reward' expects a finite number, found inf"),
    ],
)
def test_a_row_of_a_later_group_is_refused_when_it_is_read(tmp_path, column, value, message):
    """A file of another program, in groups of four rows."""
    frame = REWARDS.astype({"reward": float, "response_id": object, "correct": object})
    frame.loc[7, column] = value
    path = tmp_path / "r.parquet"
    pq.write_table(
        pa.table(frame.to_dict("list"), schema=pa.schema(map(may_be_null, tables.SCHEMAS["rewards"]))), path, 4
    )
    with pytest.raises(UserError, match=message):
        tables.read("rewards", path)


def test_a_column_that_stands_twice_is_refused_when_it_is_read(tmp_path):
    arrow = tables.check(REWARDS, "rewards", "test")
    pq.write_table(arrow.append_column("reward", arrow["reward"]), tmp_path / "r.parquet")
    with pytest.raises(UserError, match="'reward' appears twice"):
        tables.read("rewards", tmp_path / "r.parquet")


def may_be_null(field: pa.Field) -> pa.Field:
    return field.with_nullable(True)


@pytest.mark.parametrize(("last", "fine"), [("x", True), (" \n", False), ("", False)])
def test_messages_end_with_something_said(tmp_path, last, fine):
    frame = PROMPTS.assign(
        messages=[PROMPTS["messages"][0], [*PROMPTS["messages"][1], {"role": "user", "content": last}]]
    )
    path = tmp_path / "p.parquet"
    schema = tables.SCHEMAS["prompts"]
    pq.write_table(pa.table(frame.astype(object).where(frame.notna(), None).to_dict("list"), schema=schema), path)
    with contextlib.nullcontext() if fine else pytest.raises(UserError, match="row 1: column 'messages' expects"):
        tables.read("prompts", path)


def test_unreadable_and_missing_files(tmp_path):
    path = tmp_path / "p.parquet"
    with pytest.raises(UserError, match="not found; run `dvc repro`"):
        tables.read("prompts", path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        tables.read("prompts", path)
