"""Pass@N, Best-of-N and intervals by hand, against enumeration and SciPy."""

from itertools import combinations, pairwise
from math import log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from larpo.statistics import Z95, best_of_n_curve, mean_interval, pass_at_n, share_interval, wilson


def test_pass_at_n_by_hand():
    """s = 4, c = 1: Pass@1 = 1/4; Pass@2 = 1 − C(3,2)/C(4,2) = 1 − 3/6 = 1/2; Pass@4 = 1 − 0 = 1.
    c = 0 is 0 and c = s is 1 at every N."""
    s, c = np.array([4, 4, 4]), np.array([1, 0, 4])
    np.testing.assert_allclose(pass_at_n(s, c, 1), [0.25, 0, 1], atol=1e-15)
    np.testing.assert_allclose(pass_at_n(s, c, 2), [0.5, 0, 1], atol=1e-15)
    np.testing.assert_allclose(pass_at_n(s, c, 4), [1, 0, 1], atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.data())
def test_pass_at_n_is_the_share_of_draws_with_a_right_one(s, data):
    c, n = data.draw(st.integers(0, s)), data.draw(st.integers(1, s))
    draws = list(combinations([True] * c + [False] * (s - c), n))
    expected = sum(map(any, draws)) / len(draws)
    assert pass_at_n(np.array([s]), np.array([c]), n)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_n_survives_large_numbers():
    """C(10000, 5000) overflows a float. With one right of 10000, Pass@5000 = 5000/10000."""
    assert pass_at_n(np.array([10_000]), np.array([1]), 5000)[0] == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(("s", "c", "n"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_pass_at_n_refuses_impossible_numbers(s, c, n):
    with pytest.raises(ValueError, match="samples"):
        pass_at_n(np.array([s]), np.array([c]), n)


def test_wilson_by_hand():
    """5 of 10: z² = 3.8415; centre (0.5 + 0.19207)/1.38415 = 0.5; half = 1.95996 · √(0.025 + 0.0096036) / 1.38415
    = 1.95996 · 0.18602 / 1.38415 = 0.26341: from 0.23659 to 0.76341."""
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (81, 263), (1, 1000)])
def test_wilson_equals_scipy(k, n):
    expected = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(k, n)


def test_z95_is_the_97_5_percentile():
    assert norm.ppf(0.975) == pytest.approx(Z95, abs=1e-14)


def test_mean_interval_by_hand():
    """Values 0, 0, 1, 1: mean 0.5, variance (4 · 0.25)/3 = 1/3, standard error √(1/3/4) = 0.288675,
    half = 1.959964 · 0.288675 = 0.565793."""
    assert mean_interval(np.array([0, 0, 1, 1])) == pytest.approx((0.5 - 0.565793, 0.5 + 0.565793), abs=1e-6)
    assert mean_interval(np.array([2.0, 2.0])) == (2.0, 2.0)
    assert mean_interval(np.array([2.0])) == (-np.inf, np.inf)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_mean_interval_refuses_what_is_no_sample(values):
    with pytest.raises(ValueError, match="one-dimensional"):
        mean_interval(np.array(values))


def test_share_interval_has_width_where_nothing_varies():
    """0 of 16: Wilson's upper bound is z² / (16 + z²) = 3.8415 / 19.8415 = 0.1936; 16 of 16 mirrors it."""
    assert share_interval(np.zeros(16)) == (0.0, pytest.approx(0.19361, abs=1e-5))
    assert share_interval(np.ones(16)) == (pytest.approx(1 - 0.19361, abs=1e-5), 1.0)
    # mean 0.5, standard deviation 0.5774, half width 1.96 · 0.5774 / 2 = 0.5658: cut at both ends
    assert share_interval(np.array([0.0, 1.0, 0.0, 1.0])) == (0.0, 1.0)
    low, high = share_interval(np.array([0.4, 0.6] * 8))
    assert 0 < low < 0.5 < high < 1 and high - 0.5 == pytest.approx(0.5 - low)
    with pytest.raises(ValueError, match="between 0 and 1"):
        share_interval(np.array([1.2]))


def samples(rewards: list[list[float]], scores: list[list[float]]) -> pd.DataFrame:
    rows = [(f"p{i}", r, s) for i in range(len(rewards)) for r, s in zip(rewards[i], scores[i], strict=True)]
    return pd.DataFrame(rows, columns=["prompt_id", "reward", "score"])


def test_a_gamed_reward_by_hand():
    """Item 0: rewards 1, 2, 3 with scores 0, 1, 0. Item 1: rewards 5, 1, 1 with scores 1, 0, 0.
    N = 1: scores 1/3 and 1/3. N = 2: of item 0's three pairs {1,2} picks 2 (score 1), the others 3 (score 0): 1/3;
    item 1's two pairs with the 5 pick it: 2/3; mean 1/2. N = 3: 0 and 1, mean 1/2. Best there is: 1/3, 2/3, 1.
    Rewards at N = 2: (2 + 3 + 3)/3 and (5 + 5 + 1)/3, mean 19/6; at N = 3: (3 + 5)/2 = 4.
    KL: 0; log 2 − 1/2; log 3 − 2/3."""
    points = best_of_n_curve(samples([[1, 2, 3], [5, 1, 1]], [[0, 1, 0], [1, 0, 0]]), [3, 1, 2, 2])
    assert [p["n"] for p in points] == [1, 2, 3]
    assert [p["score"]["value"] for p in points] == pytest.approx([1 / 3, 1 / 2, 1 / 2])
    assert [p["upper"]["value"] for p in points] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [p["reward"]["value"] for p in points] == pytest.approx([13 / 6, 19 / 6, 4])
    assert [p["kl"] for p in points] == pytest.approx([0, log(2) - 1 / 2, log(3) - 2 / 3])


def test_interval_over_items_by_hand():
    """N = 2, all samples: picks score 0.2 and 0.6: mean 0.4, s = √0.08, half 1.959964 · 0.2828427 / √2 = 0.391993."""
    [point] = best_of_n_curve(samples([[2, 1], [2, 1]], [[0.2, 0], [0.6, 0]]), [2])
    assert point["score"] == pytest.approx({"value": 0.4, "low": 0.008007, "high": 0.791993}, abs=1e-6)


scores = st.lists(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=4, max_size=4), min_size=1)


@given(scores)
def test_upper_is_pass_at_n_and_nothing_beats_it(items):
    frame = samples([[r for r, _ in i] for i in items], [[s for _, s in i] for i in items])
    right = np.array([sum(s for _, s in i) for i in items])
    points = best_of_n_curve(frame, [1, 2, 3, 4])
    for p in points:
        assert p["upper"]["value"] == pytest.approx(pass_at_n(np.full(len(items), 4), right, p["n"]).mean())
        assert p["score"]["value"] <= p["upper"]["value"] + 1e-9
    assert points[0]["score"]["value"] == pytest.approx(right.mean() / 4)
    rewards = [p["reward"]["value"] for p in points]
    assert all(a <= b + 1e-9 for a, b in pairwise(rewards)), "a pick's reward grows with N"


@given(scores)
def test_the_true_score_as_reward_is_the_upper_bound(items):
    values = [[s for _, s in i] for i in items]
    for p in best_of_n_curve(samples(values, values), [1, 2, 4]):
        assert p["score"] == p["upper"]
