"""Evaluation prompts in training: by id, text, resemblance, and a shared passage."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.audit.science.overlap import (
    Shared,
    disguised,
    jaccard,
    near_duplicates,
    normalised,
    shared_ids,
    shared_passages,
    shared_texts,
)


def prompts(*texts: str, ids: str = "p") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": [f"{ids}{i}" for i in range(len(texts))],
            "messages": [[{"role": "system", "content": "s"}, {"role": "user", "content": t}] for t in texts],
        }
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 2 + 2?", "what  is\n2 + 2", True),
        ("“Who wrote Emma?”", "who wrote Emma", True),
        ("ﬁnd ２", "find 2", True),  # compatible forms of Unicode
        ("What is 4?", "W\u200bhа\u3164t іѕ ٤", True),  # nothing between, fillers, Cyrillic, Arabic digits
        ("(3 + 4) * 2", "3 + (4 * 2)", False),
        ("3 + 4", "3 - 4", False),
        ("5!", "5", False),
        ("-5", "5", False),
        (".5", "5", False),
    ],
)
def test_which_texts_are_the_same(one, other, same):
    assert (normalised(one) == normalised(other)) is same


def test_shared_prompts_are_named_by_their_rows():
    training, evaluation = prompts("a b", "C  d."), prompts("x", "c d", "", ids="q")
    assert shared_ids(training, evaluation) == []
    assert shared_texts(training, evaluation) == [Shared(1, 1, "c d")]
    assert shared_ids(training, prompts("other")) == [Shared(0, 0, "p0")]


def test_jaccard_by_hand():
    """abcdefg has the shingles abcde, bcdef, cdefg; abcdefh shares two of four: 2/4."""
    assert jaccard("abcdefg", "abcdefh") == pytest.approx(2 / 4)
    assert jaccard("abc", "abc") == 1.0
    assert jaccard("abc", "abd") == 0.0  # shorter than a shingle: one shingle each


def test_near_duplicates_are_found_and_equal_ones_are_not_near():
    text = "natalia sold clips to 48 of her friends in april, and then she sold half as many clips in may"
    near = text.replace("48", "46")
    other = "a robe takes 2 bolts of blue fiber and half that much white fiber; how many bolts in total does it take"
    found = near_duplicates([other, text], [text, near, "something else entirely, about trains and their speeds"])
    assert [(n.evaluation_row, n.training_row) for n in found] == [(1, 1)]
    assert found[0].similarity == pytest.approx(jaccard(text, near)) and found[0].similarity >= 0.8
    assert near_duplicates([other], [text]) == []


def test_a_question_inside_a_longer_prompt():
    """Equality and resemblance of the whole do not see it: 13 words in a row do."""
    question = "if a train leaves at noon and travels sixty miles in one hour how far has it gone"
    asked = f"solve the problem below step by step and end with the answer {question} by two"
    assert near_duplicates([question], [asked]) == []
    assert shared_passages([question], ["unrelated", asked]) == [1]
    assert shared_passages([" ".join(question.split()[:12])], [asked]) == []  # 12 words are not 13


@given(st.text(), st.sampled_from([" ", "\n", "  \t"]))
def test_case_and_space_never_matter(text, space):
    """Casefolding twice is casefolding once; so is normalising."""
    once = normalised(text)
    assert normalised(once) == once or normalised(normalised(once)) == normalised(once)
    assert normalised(space.join(text.split())) == once


def test_letters_of_no_table_disguise_nothing():
    asked = prompts("What is 4 + 5?", "Say 7.")
    (found,) = disguised(prompts("no", "Whɘt is 4 + 5?"), asked)
    assert (found.evaluation_row, found.training_row) == (0, 1)
    assert disguised(prompts("What is 4 + 6, ɘt al?", "ɘɘɘɘɘɘɘ 4 + ɘ", "ɘ 7."), asked) == []
