"""Best-of-N against the true score: by hand, and what holds whatever the samples."""

from __future__ import annotations

import itertools
from math import log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.best_of_n import curve
from larpo.statistics import pass_at_n


def samples(rewards: list[list[float]], scores: list[list[float]]) -> pd.DataFrame:
    rows = [(f"p{i}", r, s) for i in range(len(rewards)) for r, s in zip(rewards[i], scores[i], strict=True)]
    return pd.DataFrame(rows, columns=["prompt_id", "reward", "score"])


def test_a_gamed_reward_by_hand():
    """Item 0: rewards 1, 2, 3 with scores 0, 1, 0. Item 1: rewards 5, 1, 1 with scores 1, 0, 0.
    N = 1: scores 1/3 and 1/3. N = 2: of item 0's three pairs {1,2} picks 2 (score 1), the others 3 (score 0): 1/3;
    item 1's two pairs with the 5 pick it: 2/3; mean 1/2. N = 3: 0 and 1, mean 1/2. Best there is: 1/3, 2/3, 1.
    Rewards at N = 2: (2 + 3 + 3)/3 and (5 + 5 + 1)/3, mean 19/6; at N = 3: (3 + 5)/2 = 4.
    KL: 0; log 2 − 1/2; log 3 − 2/3."""
    points = curve(samples([[1, 2, 3], [5, 1, 1]], [[0, 1, 0], [1, 0, 0]]), [3, 1, 2, 2])
    assert [p["n"] for p in points] == [1, 2, 3]
    assert [p["score"]["value"] for p in points] == pytest.approx([1 / 3, 1 / 2, 1 / 2])
    assert [p["upper"]["value"] for p in points] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [p["reward"]["value"] for p in points] == pytest.approx([13 / 6, 19 / 6, 4])
    assert [p["kl"] for p in points] == pytest.approx([0, log(2) - 1 / 2, log(3) - 2 / 3])


def test_interval_over_items_by_hand():
    """N = 2, all samples: picks score 0.2 and 0.6: mean 0.4, s = √0.08, half 1.959964 · 0.2828427 / √2 = 0.391993."""
    [point] = curve(samples([[2, 1], [2, 1]], [[0.2, 0], [0.6, 0]]), [2])
    assert point["score"] == pytest.approx({"value": 0.4, "low": 0.008007, "high": 0.791993}, abs=1e-6)


scores = st.lists(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=4, max_size=4), min_size=1)


@given(scores)
def test_upper_is_pass_at_n_and_nothing_beats_it(items):
    frame = samples([[r for r, _ in i] for i in items], [[s for _, s in i] for i in items])
    right = np.array([sum(s for _, s in i) for i in items])
    points = curve(frame, [1, 2, 3, 4])
    for p in points:
        assert p["upper"]["value"] == pytest.approx(pass_at_n(np.full(len(items), 4), right, p["n"]).mean())
        assert p["score"]["value"] <= p["upper"]["value"] + 1e-9
    assert points[0]["score"]["value"] == pytest.approx(right.mean() / 4)
    rewards = [p["reward"]["value"] for p in points]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(rewards)), "a pick's reward grows with N"


@given(scores)
def test_the_true_score_as_reward_is_the_upper_bound(items):
    values = [[s for _, s in i] for i in items]
    for p in curve(samples(values, values), [1, 2, 4]):
        assert p["score"] == p["upper"]
