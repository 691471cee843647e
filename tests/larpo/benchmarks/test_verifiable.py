"""Accuracy, Pass@N and inference strategies on tables written by hand."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.benchmarks.verifiable import aggregate
from larpo.statistics import best_of_n, majority_vote, pass_at_n

COLUMNS = ["prompt_id", "temperature", "sample", "turn", "parsed", "score", "n_tokens", "finish_reason"]


def table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


GREEDY = [("a", 0.0, -1, 0, "1", 1.0, 10, "stop"), ("b", 0.0, -1, 0, "2", 0.0, 20, "stop")]
SAMPLES = [
    ("a", 0.5, 0, 0, "1", 1.0, 4, "stop"),
    ("a", 0.5, 1, 0, "3", 0.0, 4, "stop"),
    ("b", 0.5, 0, 0, "2", 0.0, 4, "stop"),
    ("b", 0.5, 1, 0, None, 0.0, 8, "length"),
    ("a", 1.0, 0, 0, "1", 1.0, 6, "stop"),
    ("a", 1.0, 1, 0, "1", 1.0, 6, "stop"),
    ("b", 1.0, 0, 0, "5", 1.0, 6, "stop"),
    ("b", 1.0, 1, 0, "2", 0.0, 6, "stop"),
]


def strategy(found: dict, name: str, n: int, temperature: float | None = None) -> dict:
    (one,) = [
        s
        for s in found["strategies"]
        if (s["strategy"], s["n"]) == (name, n) and temperature in (None, s.get("temperature"))
    ]
    return one


def test_every_temperature_has_its_recall_curve():
    """T 0.5: a 1 of 2, b 0 of 2: Pass@1 = 0.25, Pass@2 = 0.5. T 1.0: a 2 of 2, b 1 of 2: 0.75 and 1.
    Lengths and shares are those of the first temperature: (4+4+4+8)/4 = 5 tokens, 1 of 4 cut off and unparsed."""
    found = aggregate(table(GREEDY + SAMPLES))
    assert found["greedy"]["accuracy"] == 0.5
    values = {t: {n: e["value"] for n, e in curve.items()} for t, curve in found["temperatures"].items()}
    assert values == {"0.5": {"1": 0.25, "2": 0.5}, "1": {"1": 0.75, "2": 1.0}}
    assert found["pass"] == found["temperatures"]["0.5"] and found["temperature"] == 0.5
    assert (found["mean_length"], found["truncated"], found["unparsed"]) == (5.0, 0.25, 0.25)
    assert list(aggregate(table(GREEDY + SAMPLES), ns=[2, 9])["pass"]) == ["2"], "N beyond the samples is left out"


def test_greedy_alone():
    found = aggregate(table(GREEDY))
    assert "pass" not in found
    assert (found["items"], found["mean_length"]) == (2, 15.0)


def test_refinement_counts_the_tokens_of_every_turn():
    """Turn 1 mends b and spoils nothing: accuracy 1; tokens (10 + 5 + 20 + 7) / 2 = 21."""
    turns = [("a", 0.0, -1, 1, "1", 1.0, 5, "stop"), ("b", 0.0, -1, 1, "4", 1.0, 7, "stop")]
    found = aggregate(table(GREEDY + turns))
    assert found["greedy"]["accuracy"] == 0.5, "a revision is no greedy answer"
    one = strategy(found, "refinement", 2)
    assert (one["value"], one["tokens"]) == (1.0, 21.0)


def test_best_of_n_by_the_rule_is_pass_at_n_and_votes_skip_cut_off_answers():
    """T 0.5, n = 2: a votes 1, 3, a tie, the first wins: 1; b has one vote, 2, wrong: 0. Mean 0.5; 2 · 5 tokens."""
    found = aggregate(table(GREEDY + SAMPLES))
    for t, temperature in (("0.5", 0.5), ("1", 1.0)):
        for n in (1, 2):
            assert strategy(found, "best_of_n", n, temperature)["value"] == found["temperatures"][t][str(n)]["value"]
    vote = strategy(found, "majority_vote", 2, 0.5)
    assert (vote["value"], vote["tokens"]) == (0.5, 10.0)


def test_majority_by_hand():
    """Groups of 3: (x, y, y) → y, worth 0; (z, none, none) → z, worth 1; the seventh answer is left over."""
    answers = ["x", "y", "y", "z", None, None, "x"]
    assert majority_vote(answers, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0], 3) == 0.5
    assert majority_vote([None, float("nan")], [1.0, 1.0], 2) == 0.0, "nobody voted"
    with pytest.raises(ValueError, match="vote of 3"):
        majority_vote(["x"], [1.0], 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0])), min_size=1, max_size=7), st.data())
def test_best_of_n_is_the_mean_over_all_subsets(pairs, data):
    """Enumerated: over every subset of size n, the mean score of the responses that share its highest reward."""
    n = data.draw(st.integers(1, len(pairs)))
    means = []
    for subset in combinations(pairs, n):
        top = max(r for r, _ in subset)
        # Uniform choice among the tied responses, over all subsets, equals the group's own mean.
        means.append(np.mean([s for r, s in pairs if r == top]))
    rewards, scores = map(np.array, zip(*pairs, strict=True))
    assert best_of_n(rewards, scores, n) == pytest.approx(np.mean(means))


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=12), st.data())
def test_best_of_n_by_correctness_is_pass_at_n(scores, data):
    n = data.draw(st.integers(1, len(scores)))
    expected = pass_at_n(np.array([len(scores)]), np.array([int(sum(scores))]), n)[0]
    assert best_of_n(np.array(scores), np.array(scores), n) == pytest.approx(expected)
