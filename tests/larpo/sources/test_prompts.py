"""Prompt sets: reproducible draws, disjoint halves, clear refusals."""

import json
import re
from collections import Counter
from datetime import date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.config.sections import PromptsParams, TaskParams
from larpo.errors import UserError
from larpo.sources import prompts
from larpo.sources.prompts import conversation, draw, is_held_out, prompt_id

SUMS = PromptsParams(
    tasks=[{"name": "chain_sum", "config": {"min_terms": 2, "max_terms": 2, "max_digits": 2}}],
    per_iteration=8,
    system="Be brief.",
)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_training_and_held_out_prompts_never_meet(one, other):
    trained, tested = draw(SUMS, 60, one, held_out=False), draw(SUMS, 60, other, held_out=True)
    last = [{m[-1]["content"] for m in frame["messages"]} for frame in (trained, tested)]
    assert last[0].isdisjoint(last[1])
    assert trained["prompt_id"].is_unique and tested["prompt_id"].is_unique


def test_a_draw_depends_on_its_seed_alone():
    assert draw(SUMS, 20, 4, held_out=False).equals(draw(SUMS, 20, 4, held_out=False))
    assert not draw(SUMS, 20, 4, held_out=False).equals(draw(SUMS, 20, 5, held_out=False))


def test_answers_are_right_and_the_system_message_is_first():
    for messages, answer in draw(SUMS, 40, 0, held_out=False)[["messages", "answer"]].itertuples(index=False):
        assert [m["role"] for m in messages] == ["system", "user"]
        expression = messages[1]["content"].split(":")[1].rstrip(" =")
        assert eval(expression, {}) == int(answer)


def test_the_split_ignores_system_message_case_and_spaces():
    user = {"role": "user", "content": "What is 2 + 3?"}
    other = {"role": "user", "content": " what  is 2 + 3?"}
    assert is_held_out(SUMS, [user]) == is_held_out(SUMS, [{"role": "system", "content": "x"}, other])
    assert prompt_id("a", [user]) != prompt_id("b", [user]) != prompt_id("b", [other])


def test_share_of_held_out_prompts():
    """Of 4000 different texts a share of 0.3 is 1200; the standard deviation is √(4000·0.3·0.7) = 29."""
    count = sum(is_held_out(SUMS, [{"role": "user", "content": f"question {i}"}]) for i in range(4000))
    assert abs(count - 1200) < 4 * 29


def count_draws(monkeypatch) -> list[None]:
    """One entry for each prompt that a generator is asked for from now on."""
    drawn: list[None] = []
    monkeypatch.setattr(prompts, "conversation", lambda *of: drawn.append(None) or conversation(*of))
    return drawn


def test_too_few_prompts_is_one_line_however_many_are_asked_for(monkeypatch):
    few = SUMS.model_copy(
        update={
            "tasks": PromptsParams(
                tasks=[{"name": "chain_sum", "config": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}],
                per_iteration=1,
            ).tasks
        }
    )
    drawn = count_draws(monkeypatch)
    for count in (500, 100_000):
        with pytest.raises(
            UserError,
            match=rf"140 different .* 0\.3, {count} asked for by prompts\.per_iteration; expected at most 140 there",
        ):
            draw(few, count, 0, held_out=False)
    # 0.7 of the draws are of this part: two ends of some 8192 + 16 · 140 each, whatever was asked for.
    assert len(drawn) < 40_000
    with pytest.raises(TimeoutError):
        draw(few, 500, 0, held_out=False, seconds=0)


def rows(tmp_path, lines: list[dict]) -> PromptsParams:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return PromptsParams(source="dataset", dataset=str(path), answer_field="answer", per_iteration=1, held_out=0.5)


def test_prompts_from_a_file_of_ones_own(tmp_path):
    params = rows(tmp_path, [{"prompt": f"Name {i}", "answer": i} for i in range(40)])
    trained, tested = (
        sum(is_held_out(params, [{"content": f"Name {i}"}]) is part for i in range(40)) for part in (False, True)
    )
    assert trained + tested == 40 and trained and tested
    frame = draw(params, trained, 0, held_out=False)
    assert set(frame["answer"]) <= {str(i) for i in range(40)} and frame["source"].eq(params.dataset).all()
    with pytest.raises(UserError, match=rf"{tested} different prompts in the held-out share 0\.5, {tested + 1} asked"):
        draw(params, tested + 1, 0, held_out=True)


def test_a_prompt_that_comes_again_with_another_answer_is_counted(tmp_path):
    said = Counter()
    lines = [{"prompt": "1 + 1 =", "answer": answer} for answer in (2, 2, 3)]
    params = rows(tmp_path, lines).model_copy(update={"held_out": 0.0})
    assert len(draw(params, None, 0, held_out=False, refused=said)) == 1
    assert said["other_answer"] in (1, 2), "the first of the shuffled rows counts: a 2, or the 3"


def test_a_metadata_field_may_be_the_question():
    """chain_sum keeps `6 + 9` beside "State the final answer to ...: 6 + 9 ="; both have the same answer."""
    config = SUMS.tasks[0].model_dump()
    bare = SUMS.model_copy(update={"tasks": [TaskParams(**config | {"question_field": "expression"})]})
    for messages, answer in draw(bare, 20, 0, held_out=False)[["messages", "answer"]].itertuples(index=False):
        assert re.fullmatch(r"[0-9]+( [+-] [0-9]+)+", messages[-1]["content"])
        assert eval(messages[-1]["content"]) == int(answer)
    wrong = SUMS.model_copy(update={"tasks": [TaskParams(**config | {"question_field": "expresion"})]})
    with pytest.raises(UserError, match="did you mean 'expression'"):
        draw(wrong, 1, 0, held_out=False)


def test_the_answer_may_stand_inside_a_worked_solution(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"q": "How many?", "a": "2 + 3 = 5\\n#### 1,005 "}\n')
    params = PromptsParams(
        source="dataset",
        dataset=str(path),
        prompt_field="q",
        answer_field="a",
        solution_field="a",
        answer_pattern="#### (.*)",
        per_iteration=1,
        held_out=0,
    )
    row = draw(params, 1, 0, held_out=False).iloc[0]
    assert row["answer"] == "1,005" and row["solution"] == "2 + 3 = 5\n#### 1,005 "
    with pytest.raises(UserError, match="does not match prompts"):
        draw(params.model_copy(update={"answer_pattern": "@@(.*)"}), 1, 0, held_out=False)
    for pattern, words in (("####", "a group"), ("(", "regular expression")):
        with pytest.raises(ValueError, match=words):
            PromptsParams(per_iteration=1, answer_pattern=pattern)


ANSWERS = {
    "json": ("a.jsonl", ["18", "2.50", '"2024-03-01"', "1e3", "null"], ["18", "2.50", "2024-03-01", "1e3", None]),
    "csv": ("a.csv", ["18", "2.50", "2024-03-01", "NA", "True", ""], ["18", "2.50", "2024-03-01", "NA", "True", None]),
    "tsv": ("a.tsv", ["007", "1,5"], ["007", "1,5"]),
    "csv in a folder": ("set/a.csv", ["18", "2.50"], ["18", "2.50"]),
}


@pytest.mark.parametrize("form", ANSWERS)
def test_answers_are_taken_as_they_are_written(tmp_path, form):
    name, cells, expected = ANSWERS[form]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        lines = [f'{{"prompt": "p{i}", "answer": {cell}}}' for i, cell in enumerate(cells)]
    else:
        sep = "\t" if path.suffix == ".tsv" else ","
        lines = [f"prompt{sep}answer", *(f"p{i}{sep}{cell}" for i, cell in enumerate(cells))]
    path.write_text("\n".join(lines) + "\n")
    data = str(path.parent if form == "csv in a folder" else path)
    params = PromptsParams(source="dataset", dataset=data, answer_field="answer", per_iteration=1, held_out=0)
    frame = draw(params, len(cells), 0, held_out=False)
    found = {
        m[-1]["content"]: None if pd.isna(a) else a for m, a in zip(frame["messages"], frame["answer"], strict=True)
    }
    assert [found[f"p{i}"] for i in range(len(cells))] == expected


@pytest.mark.parametrize(
    "values",
    [
        [18, 2.5],  # a column of fractions makes it 18.0
        [18, None],
        [True, False],
        [date(2024, 3, 1)] * 2,
        [datetime(2024, 3, 1, 12)] * 2,
        [["72"], ["3"]],
        [{"value": 72}] * 2,
        [b"72"] * 2,
        np.array([0.1, 0.3], np.float32),  # 0.10000000149011612, which nobody wrote
    ],
)
@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_answers_that_are_no_text_any_more_are_refused(tmp_path, values, form):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train.parquet"
    pd.DataFrame({"prompt": ["a", "b"], "answer": values}).to_parquet(path)
    data = str(path if form == "parquet" else path.parent)
    params = PromptsParams(source="dataset", dataset=data, answer_field="answer", per_iteration=1, held_out=0)
    with pytest.raises(UserError, match=r"row \d: column 'answer' holds .*store the column as text"):
        draw(params, 2, 0, held_out=False)


def test_a_system_message_of_the_row_wins():
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}]
    assert conversation(SUMS, own) == own
    assert (
        conversation(SUMS, own[1:]) == conversation(SUMS, "Hi") == [{"role": "system", "content": "Be brief."}, own[1]]
    )


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_a_conversation_that_nothing_is_left_to_answer_of(role):
    """A dataset's column `messages` often holds the answer too."""
    with pytest.raises(UserError, match=r"the last to be answered; drop such rows, or set prompts\.prompt_field"):
        conversation(SUMS, [{"role": "user", "content": "Hi"}, {"role": role, "content": "Hello."}])
