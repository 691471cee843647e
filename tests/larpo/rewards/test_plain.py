"""Rewards that are plain functions: what they are given, what they may be asked, and what is refused."""

import pytest

from larpo.errors import ParameterError, UserError
from larpo.rewards.plain import plain

ASKED = [[{"role": "system", "content": "s"}, {"role": "user", "content": "What?"}]] * 2


def brief(response, per_character=1.0) -> float:
    return -per_character * len(response)


def same(response, answer) -> bool:
    return response == answer


def prompted(prompt, messages, response, cut):
    return 1.0 if (prompt, messages[0]["content"]) == ("What?", "s") and not cut else 0.0


@pytest.mark.parametrize(
    ("function", "options", "needs", "verifiable", "rewards", "correct"),
    [
        (brief, {}, False, False, [-2.0, -3.0], [None, None]),
        (brief, {"per_character": 2}, False, False, [-4.0, -6.0], [None, None]),
        (same, {}, True, True, [1.0, 0.0], [True, False]),
        (prompted, {}, False, False, [1.0, 0.0], [None, None]),
    ],
)
def test_a_function_is_a_reward(function, options, needs, verifiable, rewards, correct):
    kind = plain(function)
    assert (kind.needs_answers, kind.verifiable) == (needs, verifiable)
    made = kind(**options)
    frame = made.score(ASKED, ["42", "43"], ["42", "abc"], groups=["p", "p"], cut=[False, True])
    assert frame["reward"].tolist() == rewards and frame["correct"].tolist() == correct
    assert made.facts()["reward"].endswith(f":{function.__name__}") and made.taken() == {}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: plain(brief)(per_word=1), TypeError, "'per_word' is no option of brief"),
        (lambda: plain(brief)(response="x"), TypeError, "'response' is no option of brief"),
        (lambda: plain(lambda response, weight: weight)(), TypeError, "needs weight"),
        (lambda: plain(lambda text: 0.0), ParameterError, "expected a parameter `response`"),
        (lambda: plain(lambda response: None)().score(ASKED, [None] * 2, ["a", "b"]), UserError, "gave None"),
    ],
)
def test_what_is_no_reward_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
