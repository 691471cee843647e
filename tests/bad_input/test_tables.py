"""Tables that a node reads: spoilt by another program, a disk, or a run of something else."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from tests.bad_input.harness import Case, both, cell, cut, param, refused, rows, table, text

PROMPTS, SAMPLE, SCORE = "data/prompts/1.parquet", "data/sample/1.parquet", "data/score/1.parquet"
CANDIDATES, LISTS, REFERENCE = "data/candidates/1.parquet", "data/lists/1.parquet", "data/reference/1.parquet"
ITEMS, OUTPUTS, SCORES = "data/items/held_out.parquet", "data/generate/0-held_out.parquet", "data/evaluate/0-held_out"


def remove(path: str):
    return lambda: Path(path).unlink()


def first_as_second(column: str):
    """The id of the first row stands in the second row too."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{column: [*frame[column].iloc[[0]], *frame[column].iloc[[0]], *frame[column].iloc[2:]]})

    return change


def responses(row: int, **values):
    """Change a response in every table that has it, as the sampler of another model would have made it."""

    def spoil() -> None:
        chosen = pq.read_table(LISTS).to_pandas()["response_id"].iloc[row]

        def change(frame: pd.DataFrame) -> pd.DataFrame:
            at = frame.index[frame["response_id"] == chosen][0]
            for name, value in values.items():
                column = frame[name].tolist()
                column[at] = value
                frame[name] = column
            return frame

        table(CANDIDATES, change)()

    return spoil


def twice(path: str, column: str):
    """A column that stands twice, which pandas would not write."""

    def spoil() -> None:
        found = pq.read_table(path)
        pq.write_table(found.append_column(column, found[column]), path)

    return spoil


def compressed_without_end() -> None:
    """A table of a few kilobytes that says it has 10¹² rows."""
    raw = bytearray(Path(SAMPLE).read_bytes())
    raw[-8:-4] = (2**31 - 1).to_bytes(4, "little")
    Path(SAMPLE).write_bytes(raw)


WRONG_TABLES = rows(
    # Files
    ("missing", remove(PROMPTS), "sample 1", (PROMPTS, "not found", "dvc repro sample@1")),
    ("truncated", cut(PROMPTS, 200), "sample 1", (PROMPTS, "not a readable Parquet", "dvc checkout")),
    ("truncated by its last byte", lambda: cut(SAMPLE, Path(SAMPLE).stat().st_size - 1)(), "score 1", (SAMPLE,
      "not a readable Parquet")),
    ("empty file", text(PROMPTS, b""), "sample 1", (PROMPTS, "not a readable Parquet")),
    ("not Parquet", text(PROMPTS, "prompt_id,source\n1,2\n"), "sample 1", (PROMPTS, "not a readable Parquet")),
    ("a footer that lies", compressed_without_end, "score 1", (SAMPLE, "not a readable Parquet")),
    ("bytes changed inside", lambda: text(SAMPLE,
      Path(SAMPLE).read_bytes()[:50] + b"\xff" * 200 + Path(SAMPLE).read_bytes()[250:])(), "score 1", (SAMPLE,
      "not a readable Parquet")),
    ("a folder in place of a table", both(remove(PROMPTS), lambda: Path(PROMPTS).mkdir()), "sample 1", (PROMPTS,
      "not found")),
    # Columns
    ("column missing", table(PROMPTS, lambda f: f.drop(columns="messages")), "sample 1", (PROMPTS, "missing messages")),
    ("column unknown", table(SAMPLE, lambda f: f.assign(extra=1)), "score 1", (SAMPLE, "unknown extra")),
    ("column twice", twice(SCORE, "reward"), "candidates 1", (SCORE, "reward", "dvc checkout")),
    ("all columns of another table", table(SCORE, lambda f: f[["reward"]]), "candidates 1", (SCORE, "response_id")),
    ("text where a number belongs", table(SCORE, lambda f: f.assign(reward="1.0")), "candidates 1", (SCORE, "row 0",
      "'reward'", "a finite number", "'1.0'")),
    ("a number where text belongs", table(SAMPLE, lambda f: f.assign(text=1)), "score 1", (SAMPLE, "row 0", "'text'",
      "expects text", "found 1")),
    ("a fraction where a whole number belongs", table(SAMPLE, lambda f: f.assign(iteration=1.5)), "score 1", (SAMPLE,
      "'iteration'", "whole number", "1.5")),
    ("bytes where text belongs", table(SAMPLE, lambda f: f.assign(text=b"\xff\xfe")), "score 1", (SAMPLE, "'text'",
      "expects text")),
    ("null", cell(SAMPLE, 3, "text", None), "score 1", (SAMPLE, "row 3", "'text' is empty")),
    ("null among token ids", cell(CANDIDATES, 0, "token_ids", [5, None]), "lists 1", (CANDIDATES, "row 0",
      "'token_ids'", "token ids")),
    ("token ids too large for their type", cell(CANDIDATES, 0, "token_ids", [2**40]), "lists 1", (CANDIDATES, "row 0",
      "'token_ids'", "1099511627776")),
    ("NaN reward", cell(SCORE, 5, "reward", float("nan")), "candidates 1", (SCORE, "row 5", "'reward'")),
    ("infinite reward", cell(SCORE, 5, "reward", float("inf")), "candidates 1", (SCORE, "row 5", "finite", "inf")),
    ("NaN reference", cell(REFERENCE, 0, "reference_logp", float("nan")), "train 1", (REFERENCE, "row 0",
      "'reference_logp'")),
    ("messages that are text", cell(PROMPTS, 1, "messages", None), "sample 1", (PROMPTS, "row 1", "'messages'")),
    ("a prompt without messages", cell(PROMPTS, 1, "messages", []), "sample 1", (PROMPTS, "row 1", "list of messages")),
    ("a message without a role", table(PROMPTS, lambda f: f.assign(messages=[[{"content": "x"}]] * len(f))), "sample 1",
      (PROMPTS, "row 0", "a role and a content")),
    ("a message whose content is null", cell(PROMPTS, 2, "messages", [{"role": "user", "content": None}]), "sample 1",
      (PROMPTS, "row 2", "a role and a content")),
    ("a message with empty content", cell(PROMPTS, 2, "messages", [{"role": "user", "content": " "}]), "sample 1",
      (PROMPTS, "row 2", "the last not blank")),
    # Rows
    ("prompt id twice", table(PROMPTS, first_as_second("prompt_id")), "sample 1", (PROMPTS, "row 1", "twice")),
    ("response id twice", table(SAMPLE, first_as_second("response_id")), "score 1", (SAMPLE, "row 1", "twice")),
    ("rank twice", table(LISTS, lambda f: f.assign(rank=0)), "reference 1", (LISTS, "row 1", "rank=0", "twice")),
    ("no prompts", table(PROMPTS, lambda f: f.iloc[:0]), "sample 1", (PROMPTS, "no rows")),
    ("no responses", table(SAMPLE, lambda f: f.iloc[:0]), "score 1", (SAMPLE, "no rows")),
    ("no candidates", table(CANDIDATES, lambda f: f.iloc[:0]), "lists 1", (CANDIDATES, "no rows")),
    ("no lists", table(LISTS, lambda f: f.iloc[:0]), "reference 1", (LISTS, "no rows")),
    ("no items", table(ITEMS, lambda f: f.iloc[:0]), "generate 0 held_out", (ITEMS, "no rows")),
    ("no outputs", table(OUTPUTS, lambda f: f.iloc[:0]), "evaluate 0 held_out", (OUTPUTS, "no rows")),
    ("no evaluations", table(f"{SCORES}.parquet", lambda f: f.iloc[:0]), "report", (f"{SCORES}.parquet", "no rows")),
    # Rows of one table against another
    ("a rule without answers", table(PROMPTS, lambda f: f.assign(answer=None)), "score 1", (PROMPTS, "row 0",
      "no answer", "final_number")),
    ("responses to unknown prompts", cell(SAMPLE, 4, "prompt_id", "nobody"), "score 1", (SAMPLE, "row 4", PROMPTS,
      "dvc repro --force sample@1")),
    ("rewards of other responses", cell(SCORE, 2, "response_id", "nobody"), "candidates 1", (SCORE, SAMPLE,
      "72 rewards for 72 responses", "71 match")),
    ("fewer rewards than responses", table(SCORE, lambda f: f.iloc[1:]), "candidates 1", (SCORE, "71 rewards for 72")),
    ("lists that name absent responses", cell(LISTS, 1, "response_id", "nobody"), "reference 1", (LISTS, "row 1",
      CANDIDATES, "dvc repro --force")),
    ("a list of one response", table(LISTS, lambda f: f.drop_duplicates("prompt_id")), "reference 1", (LISTS, "row 0",
      "two responses")),
    ("a list out of order", table(LISTS, lambda f: f.assign(reward=f["reward"].tolist()[::-1])), "reference 1", (LISTS,
      "rewards that fall")),
    ("no reference for a response", table(REFERENCE, lambda f: f.iloc[1:]), "train 1", (REFERENCE, "no row for")),
    ("reference of another length", cell(REFERENCE, 1, "n_tokens", 99), "train 1", (REFERENCE, "another length")),
    ("reference of another model", cell(REFERENCE, 1, "reference_logp", -900.0), "train 1", ("before the first step",
      "other weights")),
    ("outputs to unknown items", cell(OUTPUTS, 0, "prompt_id", "nobody"), "evaluate 0 held_out", (OUTPUTS, "row 0",
      ITEMS)),
    ("items without outputs", table(OUTPUTS, lambda f: f[f["prompt_id"] != f["prompt_id"].iloc[0]]),
      "evaluate 0 held_out", (OUTPUTS, "1 of 8 items")),
    # Tokens
    ("tokens outside the vocabulary", responses(0, token_ids=[7, 10**6]), "reference 1", (CANDIDATES,
      "token id 1000000", "vocabulary")),
    ("negative tokens", responses(0, token_ids=[7, -3]), "reference 1", (CANDIDATES, "token id -3")),
    ("prompt tokens outside the vocabulary", table(CANDIDATES, lambda f: f.assign(prompt_token_ids=[[99999]] * len(f))),
      "reference 1", (CANDIDATES, "token id 99999")),
    ("a prompt without tokens", table(CANDIDATES, lambda f: f.assign(prompt_token_ids=[[]] * len(f))), "reference 1",
      (LISTS, "row 0", "no tokens")),
    ("a response without tokens", responses(0, token_ids=[]), "reference 1", (LISTS, "no tokens")),
    # Files beside the tables
    ("scores that are no JSON", text(f"{SCORES}.json", "{"), "report", (f"{SCORES}.json", "JSON")),
    ("scores without their numbers", text(f"{SCORES}.json", "{}"), "report", (f"{SCORES}.json", "scores of policy 0")),
    ("a manifest that is no JSON", text("data/sample/1.manifest.json", "{"), "report", ("data/sample/1.manifest.json",
      "JSON")),
    ("reward.json that is no JSON", both(param("reward", {"model": "data/policy/0"}), param("score.reward",
      "sequence_classification"), param("benchmarks.held_out.options", {"rule": "final_number"}),
      text("data/reward/reward.json", "{"),), "score 1", ("data/reward/reward.json", "dvc repro reward")),
    ("the reward of another kind", both(param("reward", {"model": "data/policy/0"}), param("score.reward",
      "sequence_classification"), param("benchmarks.held_out.options", {"rule": "final_number"}),), "score 1",
      ("data/reward", "sequence_classification", "rules", "dvc repro reward")),
)  # fmt: skip


@WRONG_TABLES
def test_wrong_tables(workspace, case: Case):
    refused(case)
