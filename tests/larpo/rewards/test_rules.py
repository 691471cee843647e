"""Rule rewards; what they read from texts is in test_answers.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.errors import UserError
from larpo.rewards import build_reward


def score(name: str, *pairs: tuple[str, str]):
    """Rows of (response, answer)."""
    texts, answers = zip(*pairs, strict=True)
    return build_reward(name, {}).score([[]] * len(pairs), list(answers), list(texts))


def test_final_number_refuses_answers_that_are_no_numbers():
    """They would all score 0, whatever the policy says."""
    with pytest.raises(UserError, match=r"score\.reward: final_number needs answers that are numbers, found '1, 2'"):
        score("final_number", ("3", "3"), ("1, 2", "1, 2"))


def test_exact_match():
    found = score("exact_match", ("  The\nCat ", "the cat"), ("the cat.", "the cat"), (" ", ""))
    assert found["correct"].tolist() == [True, False, False]
    assert found["parsed"].tolist()[:2] == ["the cat", "the cat."] and found["parsed"].isna()[2]


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
