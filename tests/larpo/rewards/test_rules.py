"""Rule rewards on the texts that trip number parsers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.errors import UserError
from larpo.rewards import build_reward
from larpo.rewards.rules import last_number, plain_number

LONG = "12345678901234567890123456789"  # 29 digits: one more than decimal arithmetic keeps


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,234.50", "1234.5"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("5-3", "3"),
        ("2 - 3", "3"),
        ("x = -7.", "-7"),
        ("(-5)", "-5"),
        ("−7", "-7"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("3.", "3"),
        ("1/2", "2"),
        ("12%", "12"),
        ("007", "7"),
        (".5", "0.5"),
        ("0.10", "0.1"),
        ("in 1999, 12 of 30", "30"),
        ("12, 13", "13"),
        ("1,234,567", "1234567"),
        ("1,2345", "2345"),
        ("a line\n42\n", "42"),
        (LONG, LONG),
        # neither a part of a word nor of a longer number is a number
        ("1e5", None),
        ("1.5e5", None),
        ("1.2.3", None),
        ("x2", None),
        ("12cm", None),
        ("5²", None),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 7 ", "7"),
        ("+7", "7"),
        ("7.", "7"),
        ("1e5", "100000"),
        ("2.50e1", "25"),
        ("1,234.50", "1234.5"),
        ("-0", "0"),
        ("100", "100"),
        (LONG, LONG),
        ("0.1000000000000000000000000000001", "0.1000000000000000000000000000001"),
        ("1,2,3", None),
        ("12%", None),
        ("1/2", None),
        ("nan", None),
        ("inf", None),
        ("1_000", None),
        ("", None),
        ("4 5", None),
        ("#### 4", None),
        ("1e999999999", None),
    ],
)
def test_plain_number(text, number):
    assert plain_number(text) == number


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**40), 10**40), st.integers(0, 6))
def test_every_integer_is_found_in_any_spelling(value, zeros):
    decimals = f".{'0' * zeros}" if zeros else ""
    for spelled in (f"{value}{decimals}", f"{value:,}{decimals}"):
        assert last_number(f"so 1 + 1 = {spelled}.") == str(value)
        assert plain_number(spelled) == str(value)


def score(name: str, *pairs: tuple[str, str]):
    """Rows of (response, answer)."""
    texts, answers = zip(*pairs, strict=True)
    return build_reward(name, {}).score([[]] * len(pairs), list(answers), list(texts))


def test_final_number():
    found = score("final_number", ("5 + 5 = 10", "10.0"), ("10 or 11", "10"), ("ten", "10"), (LONG, LONG[:-1] + "8"))
    assert found["correct"].tolist() == [True, False, False, False]
    assert found["reward"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found["parsed"].tolist()[:2] == ["10", "11"] and found["parsed"].isna().tolist()[2:] == [True, False]


def test_final_number_refuses_answers_that_are_no_numbers():
    """They would all score 0, whatever the policy says."""
    with pytest.raises(UserError, match=r"score\.reward: final_number needs answers that are numbers, found '1, 2'"):
        score("final_number", ("3", "3"), ("1, 2", "1, 2"))


def test_exact_match():
    found = score("exact_match", ("  The\nCat ", "the cat"), ("the cat.", "the cat"), (" ", ""))
    assert found["correct"].tolist() == [True, False, False]
    assert found["parsed"].tolist()[:2] == ["the cat", "the cat."] and found["parsed"].isna()[2]


def test_math_equivalence():
    found = score(
        "math",
        (r"so the result is $\frac{2}{4}$", r"\frac{1}{2}"),
        (r"$\boxed{0.5}$", r"\frac{1}{2}"),
        (r"$x = \sqrt{8}$", r"2\sqrt{2}"),
        (r"$\frac{1}{3}$", r"\frac{1}{2}"),
        ("no idea", "3"),
    )
    assert found["correct"].tolist() == [True, True, True, False, False]
    assert found["parsed"].isna().tolist() == [False, False, False, False, True]


def test_closeness_by_hand():
    """−log10(1 + |x − y|): 0 off is 0; 9 off −1; 99 off −2; 0.5 off −log10 1.5 = −0.176091; further off than 9,999 the
    floor −4, as where there is no number."""
    found = score(
        "closeness", ("so 42.00", "42"), ("33", "42"), ("141", "42"), ("42.5", "42"), ("99999", "42"), ("no idea", "42")
    )
    assert found["reward"].tolist() == pytest.approx([0, -1, -2, -0.176091, -4, -4], abs=1e-6)
    assert found["correct"].tolist() == [True, False, False, False, False, False]
    with pytest.raises(UserError, match=r"score\.options\.floor: expected a number below 0, found 0"):
        build_reward("closeness", {"floor": 0})
    with pytest.raises(UserError, match="closeness needs answers that are numbers"):
        score("closeness", ("1", "one"))


@given(st.integers(-(10**40), 10**40), st.integers(-(10**40), 10**40))
def test_closeness_is_0_only_for_the_answer_and_falls_with_distance(x, y):
    reward = build_reward("closeness", {"floor": -50.0})
    found = reward.score([[]] * 2, [str(y)] * 2, [str(x), str(y + 2 * (x - y))])
    assert (found["reward"][0] == 0) == (x == y) == found["correct"][0]
    assert found["reward"][1] <= found["reward"][0] <= 0


def test_a_cut_off_response_has_no_answer():
    reward = build_reward("final_number", {})
    found = reward.score([[]] * 2, ["7"] * 2, ["7", "7"], cut=[False, True])
    assert found["reward"].tolist() == [1, 0] and found["correct"].tolist() == [True, False]


def test_unknown_reward_and_unknown_option():
    with pytest.raises(UserError, match=r"score\.reward: 'final_numbr' does not exist; did you mean 'final_number'"):
        build_reward("final_numbr", {})
    with pytest.raises(UserError, match=r"score\.options: final_number: .*strict"):
        build_reward("final_number", {"strict": True})
