"""Hardness of negatives: token overlap and the gap in log-probability, by hand."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.errors import UserError
from larpo.report.hardness import common_subsequence, measure, pairs, rouge_l

IDS = st.lists(st.integers(0, 3), max_size=12)


def slow_common_subsequence(a: list[int], b: list[int]) -> int:
    """The textbook's table, cell by cell."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(IDS, IDS)
def test_common_subsequence_is_the_textbook_s(a, b):
    assert common_subsequence(a, b) == slow_common_subsequence(a, b)


@given(IDS, IDS)
def test_overlap_is_symmetric_between_0_and_1_and_1_for_equals_alone(a, b):
    assert 0 <= rouge_l(a, b) == rouge_l(b, a) <= 1
    assert (rouge_l(a, b) == 1) == (a == b)


def test_rouge_l_by_hand():
    """The example of Lin (2004), Section 3.1: "police killed the gunman" against "police kill the gunman" shares
    police, the, gunman: 3 of 4 each, F1 = 3/4; against "the gunman kill police" it shares two: 2/4. 4 of 4
    and 6 tokens: 8/10."""
    police, killed, kill, the, gunman = range(5)
    first = [police, killed, the, gunman]
    assert rouge_l(first, [police, kill, the, gunman]) == 0.75
    assert rouge_l(first, [the, gunman, kill, police]) == 0.5
    assert rouge_l(first, [police, killed, 9, the, 8, gunman]) == 0.8
    assert (rouge_l([], []), rouge_l(first, [])) == (1.0, 0.0)


def run() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Lists a: p | n1 (own, 0.7), n2 (own, 1.0); b: q | n1, which answers a. The end token is 1; n2 was cut off."""
    columns = ["response_id", "prompt_id", "temperature", "token_ids", "finish_reason"]
    rows = [("p", "a", None, [5, 6, 7, 1], "stop"), ("q", "b", None, [8, 1], "stop")]
    rows += [("n1", "a", 0.7, [5, 6, 1], "stop"), ("n2", "a", 1.0, [9, 9, 9], "length")]
    candidates = pd.DataFrame(rows, columns=columns)
    rows = [("a", 0, "p"), ("a", 1, "n1"), ("a", 2, "n2"), ("b", 0, "q"), ("b", 1, "n1")]
    lists = pd.DataFrame(rows, columns=["prompt_id", "rank", "response_id"])
    lists["role"] = ["negative" if rank else "positive" for rank in lists["rank"]]
    reference = lists[["prompt_id", "response_id"]].assign(
        reference_logp=[-4.0, -6.0, -3.0, -2.0, -12.0], n_tokens=[4, 3, 3, 2, 3]
    )
    return lists, candidates, reference


def test_pairs_by_hand():
    """a, n1: LCS of 5 6 7 and 5 6 is 2, 4/5; gap −4 + 6 = 2; per token −1 + 2 = 1. a, n2: overlap 0; gap −4 + 3 = −1;
    −1 + 1 = 0. b, n1 behind b's prompt: 0; −2 + 12 = 10; −1 + 4 = 3."""
    found = pairs(*run(), "random")
    assert found["source"].tolist() == ["own", "own", "random"]
    assert found["overlap"].tolist() == pytest.approx([0.8, 0.0, 0.0])
    assert found["gap"].tolist() == pytest.approx([2.0, -1.0, 10.0])
    assert found["gap_per_token"].tolist() == pytest.approx([1.0, 0.0, 3.0])


def test_measure_counts_lists_and_splits_temperatures():
    """List a's own negatives weigh as one list: overlap 0.4, gap 0.5; one list has no interval. Random: one
    temperature, so no split."""
    own, cold, hot, other = measure(*run(), "related")
    assert [(h.source, h.temperature, h.lists, h.negatives) for h in (own, cold, hot, other)] == [
        ("own", None, 1, 2),
        ("own", 0.7, 1, 1),
        ("own", 1.0, 1, 1),
        ("related", None, 1, 1),
    ]
    assert (own.overlap.value, own.gap.value, own.gap_per_token.value) == pytest.approx((0.4, 0.5, 0.5))
    assert (cold.gap.value, hot.gap.value, other.gap.value) == (2.0, -1.0, 10.0)
    assert (own.gap.low, own.gap.high) == (None, None)
    assert own.flat()["gap_low"] is None and own.flat()["negatives"] == 2


def test_interval_over_lists_by_hand():
    """Two lists with gaps 2 and 10 (their own negatives n1): mean 6, s = √32, 1.96 · √32 / √2 = 7.84."""
    lists, candidates, reference = run()
    candidates = pd.concat([candidates, candidates.iloc[[2]].assign(response_id="n3", prompt_id="b")])
    lists, reference = lists.drop(index=2), reference.drop(index=2)
    lists.loc[4, "response_id"] = reference.loc[4, "response_id"] = "n3"
    (found,) = measure(lists, candidates, reference)
    assert (found.gap.value, found.gap.low, found.gap.high) == pytest.approx((6.0, -1.83986, 13.83986), abs=1e-4)


def test_a_missing_log_probability_is_refused():
    lists, candidates, reference = run()
    # The row of n1 behind b's prompt is not that behind a's.
    with pytest.raises(UserError, match="no log-probability of response n1"):
        measure(lists, candidates, reference.iloc[:-1])
