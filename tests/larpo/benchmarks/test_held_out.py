"""The held-out benchmark: which items, and its metrics by hand."""

import numpy as np
import pandas as pd
import pytest

from larpo.benchmarks import build_benchmark
from larpo.benchmarks.held_out import HeldOut
from larpo.sources.prompts import draw
from tests.larpo.benchmarks.kit import params, refused


def evaluations(greedy: list[float], sampled: list[list[float]], **columns) -> pd.DataFrame:
    rows = [(f"p{i}", -1, score) for i, score in enumerate(greedy)]
    rows += [(f"p{i}", j, score) for i, scores in enumerate(sampled) for j, score in enumerate(scores)]
    frame = pd.DataFrame(rows, columns=["prompt_id", "sample", "score"])
    frame["temperature"] = np.where(frame["sample"] < 0, 0.0, 0.7)
    return frame.assign(**({"turn": 0, "n_tokens": 3, "finish_reason": "stop", "parsed": "1"} | columns))


def test_aggregate_by_hand():
    """Greedy 1 of 2: Wilson for 1 of 2 is 0.5 ± 1.95996 · √(0.125 + 0.240092) / 2.920729
    = 0.5 ± 0.405468. Samples: 1 of 4 and 4 of 4 right.
    Pass@1 = (1/4 + 1)/2 = 0.625; Pass@2 = (1/2 + 1)/2 = 0.75; Pass@4 = 1.
    Pass@2 has values 0.5 and 1: standard error √(0.125/2) = 0.25, half 1.959964 · 0.25 = 0.489991, up to 1.
    Rewards: 5 right of 8 and one cut off at 0.5: (5 − 0.5)/8 = 0.5625; 1/8 truncated; 2/8 unparsed."""
    frame = evaluations([1, 0], [[1, 0, 0, 0], [1, 1, 1, 1]])
    frame.loc[3, "finish_reason"] = "length"  # a wrong one; rows 0 and 1 are greedy
    frame.loc[[3, 4], "parsed"] = None
    frame.loc[0, ["finish_reason", "parsed"]] = ["length", None]  # a greedy row counts in no sampled share
    frame["n_tokens"] = [100, 100, 1, 2, 3, 4, 5, 6, 7, 8]
    found = build_benchmark(params(), "b").aggregate(None, frame)
    assert found["greedy"] == pytest.approx({"accuracy": 0.5, "low": 0.094532, "high": 0.905468}, abs=1e-5)
    assert list(found["pass"]) == ["1", "2", "4"]
    assert {n: v["value"] for n, v in found["pass"].items()} == pytest.approx({"1": 0.625, "2": 0.75, "4": 1.0})
    assert found["pass"]["2"] == pytest.approx({"value": 0.75, "low": 0.75 - 0.489991, "high": 1.0}, abs=1e-6)
    assert found["mean_reward"] == pytest.approx(0.5625)
    assert found["mean_length"] == pytest.approx(4.5)
    assert (found["truncated"], found["unparsed"]) == (0.125, 0.25)
    reward = [1, -0.5, 0, 0, 1, 1, 1, 1]
    assert found["length_reward_correlation"] == pytest.approx(np.corrcoef(range(1, 9), reward)[0, 1])
    assert (found["items"], found["samples"], found["temperature"]) == (2, 4, 0.7)


def test_correlation_needs_variation_and_budgets_end_at_the_number_of_samples():
    """6 samples: N = 1, 2, 4, 6."""
    bench = build_benchmark(params(), "b")
    assert bench.aggregate(None, evaluations([0], [[1, 0, 1, 0]]))["length_reward_correlation"] is None
    same = evaluations([0], [[1, 1, 1, 1]], n_tokens=[1, 2, 3, 4, 5])
    assert bench.aggregate(None, same)["length_reward_correlation"] is None
    curve = bench.aggregate(None, evaluations([0, 0], [[1] * 6, [0] * 6]))["pass"]
    assert {n: v["value"] for n, v in curve.items()} == {"1": 0.5, "2": 0.5, "4": 0.5, "6": 0.5}


def test_score_keeps_the_order_and_counts_a_cut_off_answer_as_wrong():
    items = pd.DataFrame({"prompt_id": ["a", "b"], "source": "s", "messages": [[], []], "answer": ["1", "2"]})
    reasons = ["stop", "stop", "length", "stop"]
    outputs = pd.DataFrame({"prompt_id": list("baba"), "text": list("212x"), "finish_reason": reasons}, [7, 3, 3, 0])
    scored = build_benchmark(params(), "b").score(items, outputs)
    assert scored["score"].tolist() == [1, 1, 0, 0]
    assert scored["parsed"].tolist()[:3] == ["2", "1", "2"]
    assert scored["parsed"].isna().tolist() == [False, False, False, True]


def test_items_are_the_same_every_time_and_never_training_prompts(tmp_path):
    some = params()
    items = build_benchmark(some, "b").items()
    assert len(items) == 10
    pd.testing.assert_frame_equal(items, build_benchmark(some, "b").items())
    for seed in range(3):
        assert not set(items["prompt_id"]) & set(draw(some.prompts, 50, seed, held_out=False)["prompt_id"])
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "question {i}"}}\n' for i in range(60)))
    some = params(prompts={"source": "dataset", "dataset": str(path), "per_iteration": 4, "held_out": 0.5})
    refused(["held-out prompts (100%) have none", "set prompts.answer_field"], build_benchmark(some, "b").items)


def named(rule: str | None, **score) -> HeldOut:
    entry = {"items": 4, "generate": {"samples": 4, "max_new_tokens": 4}, "options": {"rule": rule}}
    return build_benchmark(params(score=score, benchmarks={"b": entry}), "b")


def test_the_rule_of_a_model_reward():
    """A model has no verdict: the benchmark's own rule has. Of a sum the first rule counts."""
    model = {"reward": "sequence_classification"}
    assert named("closeness", **model).rule == "closeness"
    for rule, words in (
        (None, "b.options.rule: sequence_classification is no rule, and accuracy"),
        ("pairrm", "options.rule: pairrm is no rule"),
        ("final_numbr", "options.rule: 'final_numbr' does not exist; did you mean 'final_number'"),
    ):
        refused([words], named, rule, **model)
    parts = [{"reward": "sequence_classification"}, {"reward": "exact_match"}]
    assert named(None, reward="sum", options={"parts": parts}).rule == "exact_match"


def test_mean_reward_of_a_graded_rule_and_of_a_model():
    """closeness with length_penalty 0.1 and three tokens: answers 42 (0 off), 33 (9 off: −1), none and a cut-off 42
    (the floor −4 each, the latter less 0.5): mean (0 − 1 − 4 − 4.5)/4 − 0.3 = −2.675. A model's reward is not known
    here."""
    frame = evaluations([1], [[1, 0, 0, 0]], parsed=["42", "42", "33", None, "42"], answer="42")
    frame.loc[4, "finish_reason"] = "length"
    graded = named(None, reward="closeness", truncation_penalty=0.5, length_penalty=0.1)
    assert graded.aggregate(None, frame)["mean_reward"] == pytest.approx(-2.675)
    assert named("closeness", reward="sequence_classification").aggregate(None, frame)["mean_reward"] is None


def test_unknown_benchmark_name():
    refused(["benchmarks.bb: does not exist; did you mean 'b'"], build_benchmark, params(), "bb")
