"""What was asked, sampled and shown, changed by someone who made every hash agree: making it again tells.

The checks are asked alone: that hashes can be made to agree is shown in test_audit_science.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from larpo import tables
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check
from larpo.audit.science.check import CHECKS, check_science
from tests.larpo.audit.forgery import edit_table, quietly


@pytest.fixture(scope="module")
def shared(finished_project, tmp_path_factory) -> AuditedRun:
    return AuditedRun(finished_project.copy(tmp_path_factory.mktemp("asked") / "copy").folder)


@pytest.fixture
def run(shared) -> Iterator[AuditedRun]:
    """A copy to tamper with; what a test changed is put back after it."""
    files = [p for name in ("data", "report") for p in (shared.folder / name).rglob("*") if p.is_file()]
    before = {path: path.read_bytes() for path in files}
    yield shared
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def ask(run: AuditedRun, name: str) -> Check:
    with contextlib.chdir(run.folder):
        return CHECKS[name](run, name)


def table(path: str, name: str, change: Callable) -> Callable[[Path], None]:
    return lambda folder: edit_table(folder / path, name, change)


def put(column: str, row: int, value: Any) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        assert not np.array_equal(frame.at[row, column], value)
        frame.at[row, column] = value

    return change


def other_end(frame: pd.DataFrame) -> None:
    frame.loc[0, "finish_reason"] = {"stop": "length", "length": "stop"}[frame.loc[0, "finish_reason"]]


def fewer_samples(folder: Path) -> None:
    """The last sample of an item, gone from the outputs and from their scores."""
    for kind, name in (("generate", "outputs"), ("evaluate", "evaluations")):
        edit_table(folder / f"data/{kind}/2-held_out.parquet", name, lambda f: f.iloc[:-1])


def leak_in_example(folder: Path) -> None:
    """An evaluation item as the worked example of a training prompt."""
    asked = tables.read("items", folder / "data/items/held_out.parquet").at[3, "messages"]

    def change(frame: pd.DataFrame) -> None:
        frame.at[2, "messages"] = [*asked, {"role": "assistant", "content": "42"}, *frame.at[2, "messages"]]

    edit_table(folder / "data/prompts/2.parquet", "prompts", change)


EASY = [{"role": "user", "content": "Say 7."}]
SAMPLE, OUTPUTS = "data/sample/1.parquet", "data/generate/2-held_out.parquet"
CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "an easier item": (
        table("data/items/held_out.parquet", "items", put("messages", 1, EASY)),
        "items",
        "data/items/held_out.parquet, row 1: messages is",
    ),
    "fewer items": (
        table("data/items/held_out.parquet", "items", lambda f: f.iloc[:-1]),
        "items",
        "data/items/held_out.parquet: 7 rows, computed again 8",
    ),
    "a prompt that the seed does not draw": (
        table("data/prompts/1.parquet", "prompts", put("answer", 4, "7")),
        "prompts",
        "data/prompts/1.parquet, row 4: answer is '7'",
    ),
    "an id of another prompt": (
        table("data/prompts/1.parquet", "prompts", put("messages", 4, EASY)),
        "ids",
        "data/prompts/1.parquet, row 4: prompt_id is",
    ),
    "tokens of another response": (
        table(SAMPLE, "responses", put("token_ids", 3, [5, 6])),
        "ids",
        f"{SAMPLE}, row 3: response_id is",
    ),
    "a temperature": (
        table(SAMPLE, "responses", put("temperature", 7, 0.5)),
        "as many as asked for",
        f"{SAMPLE}, row 7: temperature is 0.5, computed again 1.0",
    ),
    "a seed": (table(SAMPLE, "responses", put("seed", 7, 5)), "as many as asked for", f"{SAMPLE}, row 7: seed is 5"),
    "an iteration": (
        table(SAMPLE, "responses", put("iteration", 7, 2)),
        "as many as asked for",
        f"{SAMPLE}, row 7: iteration is 2",
    ),
    "samples left out": (fewer_samples, "as many as asked for", f"{OUTPUTS}: 39 rows, computed again 40"),
    "a text": (
        table(OUTPUTS, "outputs", put("text", 2, "42")),
        "texts are their tokens",
        f"{OUTPUTS}, row 2: text is '42'",
    ),
    "how an output ended": (
        table(OUTPUTS, "outputs", other_end),
        "texts are their tokens",
        f"{OUTPUTS}, row 0: finish_reason is",
    ),
    "what an output was asked": (
        table(OUTPUTS, "outputs", put("prompt_token_ids", 6, [5, 6])),
        "texts are their tokens",
        f"{OUTPUTS}, row 6: prompt_token_ids are not those of its prompt",
    ),
    "a length": (
        table(OUTPUTS, "outputs", put("n_tokens", 6, 99)),
        "texts are their tokens",
        f"{OUTPUTS}, row 6: n_tokens is 99",
    ),
    "an expected answer": (
        table("data/evaluate/2-held_out.parquet", "evaluations", put("answer", 5, "0")),
        "scores of raw outputs",
        "data/evaluate/2-held_out.parquet, row 5: answer is '0'",
    ),
    "a reward's name": (
        table("data/score/1.parquet", "rewards", put("reward_name", 5, "math")),
        "rewards",
        "data/score/1.parquet, row 5: reward_name is 'math'",
    ),
    "the page": (
        lambda f: quietly(f / "report/index.html", lambda page: page.replace(b"Pass@1", b"Pass@2")),
        "report",
        "report/index.html: ",
    ),
    "a plotted curve": (
        lambda f: quietly(f / "report/training.csv", lambda rows: rows.replace(b"1,1,", b"1,9,")),
        "report",
        "report/training.csv: ",
    ),
    "an evaluation prompt as an example": (
        leak_in_example,
        "no evaluation prompt in training",
        "data/items/held_out.parquet, row 3: its text is also in data/prompts/2.parquet, row 2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_not_asked_or_sampled(run, case):
    change, name, words = CASES[case]
    change(run.folder)
    check = ask(run, name)
    assert check.verdict == "fails" and check.failures[0].startswith(words), check


def test_what_cannot_be_made_here_is_not_checked(run, monkeypatch):
    """Another version of the generator draws other prompts; that is no one's fault."""
    monkeypatch.setattr("larpo.audit.science.sampling.version", lambda name: "0.0.1")
    for name in ("prompts", "items"):
        check = ask(run, name)
        assert check.verdict == "not checked" and "reasoning-gym is 0.0.1 here and was 0.1" in check.detail


def test_a_table_that_does_not_fit_ends_one_check(run):
    """A stranger's tables may pass their schema and still be impossible."""
    edit_table(run.folder / OUTPUTS, "outputs", put("token_ids", 0, [-5, 2**31 - 1]))
    with contextlib.chdir(run.folder):
        found = {c.name: c for c in check_science(run)}
    broken = found["texts are their tokens"]
    assert broken.verdict == "fails" and broken.failures[0].startswith("OverflowError: "), broken
    assert found["report"].verdict == found["rewards"].verdict == "holds"
