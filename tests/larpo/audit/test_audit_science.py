"""Numbers changed by someone who made every hash agree: only computing them again can tell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from larpo import tables
from larpo.audit.bytes.check import check_bytes
from larpo.audit.lineage.check import records
from larpo.audit.open import AuditedRun
from larpo.audit.science.check import CHECKS
from tests.larpo.audit.forgery import agree, edit_json, edit_table


def raise_reward(frame: pd.DataFrame) -> None:
    frame.loc[5, "reward"] += 0.25


def call_it_correct(frame: pd.DataFrame) -> None:
    row = int((frame["score"] == 0).idxmax())
    frame.loc[row, "score"] = 1.0


def swap(frame: pd.DataFrame) -> None:
    frame.loc[[0, 1], "response_id"] = frame.loc[[1, 0], "response_id"].to_numpy()


def leak(folder: Path, change: Callable[[str], str]) -> None:
    """Make the first training prompt the text of the first evaluation item, changed."""
    asked = tables.read("items", folder / "data/items/held_out.parquet")["messages"][0][-1]["content"]

    def put(frame: pd.DataFrame) -> None:
        frame.at[0, "messages"] = [*frame["messages"][0][:-1], {"role": "user", "content": change(asked)}]

    edit_table(folder / "data/prompts/1.parquet", "prompts", put)


def lose_memory(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[1:].reset_index(drop=True)


def first_loss(folder: Path) -> None:
    path = folder / "data/train/1/plots/metrics/loss.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "1\t0.31", *lines[2:]]) + "\n")


def table(path: str, name: str, change: Callable) -> Callable[[Path], None]:
    return lambda folder: edit_table(folder / path, name, change)


def tree(path: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / path, change)


CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a reward": (
        table("data/score/1.parquet", "rewards", raise_reward),
        "rewards",
        "data/score/1.parquet, row 5: reward is",
    ),
    "a lost candidate": (
        table("data/candidates/2.parquet", "candidates", lose_memory),
        "candidates",
        "data/candidates/2.parquet: 143 rows, computed again 144",
    ),
    "an exchanged pair": (
        table("data/lists/1.parquet", "lists", swap),
        "lists",
        "data/lists/1.parquet, row 0: response_id is",
    ),
    "a log-probability": (
        table("data/reference/1.parquet", "reference", lambda f: f.update(f["reference_logp"] + 0.5)),
        "reference log-probabilities",
        "data/reference/1.parquet, row",
    ),
    "a loss at step 0": (
        tree("data/train/1.manifest.json", lambda m: m["notes"].update(step0_loss=0.69)),
        "losses at step 0",
        "data/train/1.manifest.json: notes.step0_loss is 0.69",
    ),
    "a curve": (first_loss, "losses at step 0", "data/train/1: loss of step 1 is 0.31"),
    "a wrong answer called right": (
        table("data/evaluate/2-held_out.parquet", "evaluations", call_it_correct),
        "scores of raw outputs",
        "data/evaluate/2-held_out.parquet, row 0: score is 1.0, computed again 0.0",
    ),
    "an accuracy": (
        tree("data/evaluate/2-held_out.json", lambda m: m["greedy"].update(accuracy=0.75)),
        "metrics",
        "data/evaluate/2-held_out.json: greedy.accuracy is 0.75, computed again 0.0",
    ),
    "a reported number": (
        tree("report/scores.json", lambda m: m["held_out"]["2"].update(pass_k=0.875)),
        "report",
        "report/scores.json: ",
    ),
    "an evaluation prompt in training": (
        lambda folder: leak(folder, lambda text: f"  {text.upper()}?"),
        "no evaluation prompt in training",
        "data/items/held_out.parquet, row 0: its text is also in data/prompts/1.parquet, row 0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_forged_number(finished_project, tmp_path, case):
    change, name, words = CASES[case]
    copy = finished_project.copy(tmp_path / "copy")
    change(copy.folder)
    agree(copy)
    run = AuditedRun(copy.folder)
    hashes = {c.name: c.verdict for c in check_bytes(run)}
    assert hashes["outputs"] == hashes["folders that nodes read"] == "holds", "the forgery is not complete"
    assert records(run, {n.name: run.manifest(n) for n in run.nodes}).verdict == "holds"
    with contextlib.chdir(copy.folder):
        check = CHECKS[name](run, name)
    assert check.verdict == "fails" and check.failures[0].startswith(words), check


def test_a_leak_that_is_only_near_is_counted(finished_project, tmp_path):
    copy = finished_project.copy(tmp_path / "copy")
    name = "near-duplicates of evaluation prompts"
    with contextlib.chdir(copy.folder):
        before = CHECKS[name](AuditedRun(copy.folder), name)
    leak(copy.folder, lambda text: f"{text} again")
    with contextlib.chdir(copy.folder):
        after = CHECKS[name](AuditedRun(copy.folder), name)
    assert before.verdict == after.verdict == "counted"
    assert before.detail != after.detail and "again" in after.detail
