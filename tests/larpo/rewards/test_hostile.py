"""What a response may hold by accident takes bounded time and crashes nothing; the same text has the same reward."""

import os
import resource

import pytest

from larpo.rewards import build_reward
from tests.larpo.rewards.hostile import expressions

SECONDS = 5
"""Processor time per expression, at most: one in math-verify, the others for reading a million characters."""


def used() -> float:
    """Processor time of this process and of those that it waited for, in seconds."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def scored(count: int, seed: int = 1) -> list[float]:
    """Rewards of hostile responses by the rule `math`, a right one between any two."""
    texts = [text for made in expressions(count, seed) for text in (made, r"\boxed{\sqrt{9}}")]
    start = used()
    rewards = build_reward("math", {}).score([[]] * len(texts), ["3"] * len(texts), texts)["reward"].tolist()
    assert used() - start < SECONDS * count
    assert rewards[1::2] == [1.0] * count, "a hostile expression takes none beside it with it"
    return rewards[::2]


@pytest.mark.timeout(1800)  # a minute of processor time, on a busy machine many of wall time
def test_hostile_expressions_end_with_the_same_rewards():
    first = scored(18)
    assert first == scored(18) and sum(first) == 0


@pytest.mark.faults
@pytest.mark.timeout(3 * 3600)
def test_a_thousand_hostile_expressions_end_with_the_same_rewards():
    count = int(os.environ.get("LARPO_FAULTS_HOSTILE", "1000"))
    assert scored(count) == scored(count)


def test_hostile_texts_have_a_number_or_none():
    """final_number reads them in this process, so nothing there may raise, or take time beyond the text's length."""
    start = used()
    texts = [text for text in expressions(54, 2) if len(text) < 400_000]
    build_reward("final_number", {}).score([[]] * len(texts), ["3"] * len(texts), texts)
    assert used() - start < len(texts)
