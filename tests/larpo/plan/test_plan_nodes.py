"""Nodes of the present graph, each worked out by hand: rewards and their training, lists, gold, encoders, best-of-N."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.config.reward import RULES
from larpo.plan import Assumptions
from larpo.plan.formula import evaluate
from larpo.plan.kinds.score import comparisons
from tests.conftest import ROOT
from tests.larpo.plan.test_plan_runs import FSFAIRX, PAIRRM, node, plan_of

TUNED = {
    "previous": "0",
    "learning_rate": 1e-5,
    "examples": 100,
    "data": {"source": "dataset", "dataset": "meta-math/MetaMathQA", "solution_field": "response"},
}
FULL = {
    "seed": 0,
    "reward": {"start": RULES},
    "report": {},
    "sft": {"base": TUNED, "more": TUNED | {"previous": "base"}},
    "iterations": {"1": {"previous": "more", "temperatures": [1.0]}, "2": {"previous": "0", "temperatures": [0.8]}},
    "evaluate": {"policies": ["0", "base", "2"]},
    "best_of_n": {"x": {"policy": "2", "benchmark": "gsm8k", "ns": [1, 4]}},
    "retrieval": {
        "own": {
            "model": "intfloat/e5-base-v2",
            "corpus": "data/samples/passages.jsonl",
            "queries": "data/samples/queries.jsonl",
        }
    },
}
"""Something in every section of params.yaml that a stage is unrolled over."""


def test_mismatched_and_gold_responses():
    """Best and worst, and a mismatched one behind the same prompt: 2 epochs · 20,000 · (200 + 3 · 449) = 61,880,000
    tokens; the reference reads half of that in one pass. With gold responses 11 of each prompt are scored, none more is
    sampled; a gold positive against all the rest makes lists of 1 + 10, of correct ones against the rest 10."""
    pair = {"lists.recipe": "best_worst"}
    kto = plan_of(**pair, **{"reference.mismatched": True, "train.objective": "kto"})
    assert node(kto, "train@1").train_tokens.value == 61_880_000
    assert node(kto, "reference@1").hours.formula.startswith("30,940,000 tokens")
    assert node(plan_of(**pair), "train@1").train_tokens.value == 40_000 * (200 + 2 * 449)
    gold = {"sample.gold": True, "prompts.solution_field": "answer", "lists.positive": "gold", "lists.top": 1}
    plan = plan_of(**gold, **FSFAIRX, **{"lists.recipe": "top_rest"})
    assert node(plan, "sample@1").sample_tokens.value == 20_000 * 10 * 450
    assert node(plan, "score@1").notes == ("20,000 prompts · 11 responses · 650 tokens read",)
    assert node(plan, "train@1").train_tokens.value == 40_000 * (200 + 11 * 449)
    correct = plan_of(**{"lists.recipe": "top_rest", "lists.top": 1, "lists.positive": "correct"})
    assert node(correct, "train@1").train_tokens.value == 40_000 * (200 + 10 * 449)


def test_which_candidates_enter():
    """Fresh prompts, memory `all`: 20,000, 40,000 and 60,000 lists; `previous` at most 40,000; `first` 20,000 in every
    iteration. The same prompts: 20,000 lists whatever the memory, and with the recipe `all` they have 10, 20, 20
    responses under `previous`."""

    def lists(**changes):
        plan = plan_of(**{"lists.recipe": "best_worst", "train.epochs": 1} | changes)
        return [node(plan, f"train@{s}").train_tokens.value for s in "123"]

    one = 20_000 * (200 + 2 * 449)
    assert lists(**{"lists.memory": "all"}) == [one, 2 * one, 3 * one]
    assert lists(**{"lists.memory": "previous"}) == [one, 2 * one, 2 * one]
    assert lists(**{"lists.memory": "first"}) == [one, one, one]
    assert lists(**{"lists.memory": "all", "prompts.draw": "same"}) == [one, one, one]
    whole = lists(**{"lists.memory": "previous", "prompts.draw": "same", "lists.recipe": "all"})
    assert whole == [20_000 * (200 + m * 449) for m in (10, 20, 20)]


def test_offline_training_on_one_large_set():
    """60,000 prompts · 10 responses · 450 tokens in one iteration; the data set has 61,135 prompts, so 70,000 fail."""
    once = {"iterations": {"1": {"previous": "0", "temperatures": [0.8]}}, "prompts.held_out": 0}
    once["evaluate.policies"] = ["0", "1"]
    plan = plan_of(**once, **{"prompts.per_iteration": 60_000})
    assert node(plan, "sample@1").sample_tokens.value == 270_000_000
    assert plan.failed == []
    line = "prompts.per_iteration: 70,000 of 61,135 (HuggingFaceH4/ultrafeedback_binarized)"
    assert plan_of(**once, **{"prompts.per_iteration": 70_000}).failed == [line]


def test_a_generator_of_fewer_prompts_than_asked_for_fails():
    narrow = {"source": "sums", "sums": {"digits": 1}, "per_iteration": 300}
    (line,) = plan_of(prompts=narrow).failed
    assert line.startswith("prompts.source: sums: 58 different") and "300 asked for by prompts.per_iteration" in line


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(1, 9), st.randoms())
def test_comparisons_are_those_that_pairrm_makes(k, passes, rng):
    """Of 4 responses: 4 · 3 ordered pairs, or 2 · (3 + 2) in two passes of bubble sort; and never fewer than the real
    code compares, exactly as many in its first pass."""
    from larpo.rewards.pairrm import bubble

    assert evaluate(comparisons(4, {})) == 12
    assert evaluate(comparisons(4, {"comparisons": "bubble", "passes": 2})) == 10

    class Counting:
        made = 0

        def compare(self, jobs):
            self.made += len(jobs)
            return [rng.uniform(-1, 1) for _ in jobs]

    comparer = Counting()
    bubble(comparer, [[f"text {i}" for i in range(k)]], passes)
    bound = evaluate(comparisons(k, {"comparisons": "bubble", "passes": passes}))
    assert comparer.made <= bound
    if passes == 1:
        assert comparer.made == bound == 2 * (k - 1)


def test_pairrm_and_sums_of_rewards():
    """A prompt of 200 and two of 450 tokens: 1,100 read by each of 20,000 · 90 comparisons, all attended. In a sum the
    rule costs nothing. A prompt longer than source_max_length is cut to it."""
    plan = plan_of(**PAIRRM)
    flops = 20_000 * 90 * 1100 * (2 * 434_012_160 + 4 * 24 * 1024 * 1100)
    assert node(plan, "score@1").hours.value == pytest.approx(flops / (67e12 * 0.5) / 3600)
    parts = [{"reward": "final_number"}, {"reward": "pairrm", "weight": 0.1, "options": {"source_max_length": 100}}]
    summed = plan_of(**{**PAIRRM, "score": {"reward": "sum", "options": {"parts": parts}}})
    notes = node(summed, "score@1").notes
    assert notes == ("rule final_number, on the CPU", "20,000 prompts · 10 · 9 ordered pairs · 1000 tokens read")
    tight = plan_of(**{**FSFAIRX, "reward": FSFAIRX["reward"] | {"max_length": 1024}})
    assert any("a response is never cut" in line for line in tight.failed)


def test_a_reward_that_is_trained(tmp_path):
    """1,000 pairs, a tenth held out, 2 epochs, both halves of 400 tokens: 900 · 2 · 2 · 400 = 1,440,000 tokens, in
    float32: 4 · 7,504,928,768 B of weights; no vocabulary, so no logits. Accuracy on 100 held-out pairs and 50 of a
    file reads 150 · 2 · 400 = 120,000 tokens. Pairs that are not here and of no known number make the hours unknown."""
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 50)
    train = {"data": {"data": "someone/pairs"}, "learning_rate": 1e-5, "epochs": 2}
    wanted = {**FSFAIRX, "reward": FSFAIRX["reward"] | {"train": train, "checks": {"own": {"data": str(file)}}}}
    unknown = node(plan_of(**wanted), "reward")
    assert unknown.train_tokens.value is None and "--assume items.someone/pairs=N" in unknown.hours.formula
    assert unknown.memory["weights"].value == 4 * 7_504_928_768 and unknown.memory["logits"].value == 0
    found = node(plan_of(Assumptions().override(["items.someone/pairs=1000"]), **wanted), "reward")
    assert found.train_tokens.value == 1_440_000
    work = 2 * 7_504_928_768
    trained = 3 * 1_440_000 * (work + 4 * 32 * 4096 * 400) / (67e12 * 0.4)
    measured = 120_000 * (work + 4 * 32 * 4096 * 200) / (989e12 * 0.5)
    assert found.hours.value == pytest.approx((trained + measured) / 3600)
    # On a policy: of its size, Mistral's. Pairs of sums are counted: 3645 careless ones, 8100 lengths.
    pairs = {"source": "sums", "sums": {"errors": ["careless", "length"]}}
    head = {"start": "data/policy/0", "train": train | {"data": pairs, "held_out": 0.1}}
    found = node(plan_of(**{"reward": head, "prompts.held_out": 0.1}), "reward")
    assert found.memory["weights"].value == 4 * 7_241_732_096
    assert found.train_tokens.value == pytest.approx(11_745 * 0.9 * 2 * 2 * 400)
    rules = node(plan_of(), "reward")
    assert rules.notes == ("no model: rules, on the CPU",) and rules.hours is None


def test_best_of_n_and_encoders(monkeypatch):
    """100 sampled items · 20 samples of 200 tokens behind 90: 290 read by FsfairX. The passages that ship with the
    project are 48, the queries 52: 100 · 256 tokens; a flat index holds 48 · 768 · 4 B. Related negatives encode 20,000
    prompts of 200 tokens."""
    monkeypatch.chdir(ROOT)
    best = {"x": {"policy": "3", "benchmark": "gsm8k", "ns": [1, 4]}}
    plan = plan_of(**FSFAIRX, best_of_n=best)
    assert node(plan, "best_of_n@x").notes == ("100 prompts · 20 responses · 290 tokens read",)
    plan = plan_of(retrieval=FULL["retrieval"])
    assert node(plan, "embed@own").hours.formula.startswith("25,600 tokens")
    assert "48 passages of a shard · 768 · 4 B" in node(plan, "retrieve@own").notes[0]
    big = {"own": FULL["retrieval"]["own"] | {"index": "ivf_pq", "index_options": {"m": 64}}}
    plan = plan_of(Assumptions().override(["items.own=21000000"]), retrieval=big)
    assert "21,000,000 passages · 64 B of code = 1.3 GiB" in node(plan, "retrieve@own").notes[0]
    absent = {"own": FULL["retrieval"]["own"] | {"corpus": "no.jsonl.gz"}}
    assert "--assume items.own=N" in node(plan_of(retrieval=absent), "embed@own").hours.formula
    related = plan_of(**{"lists.negatives": "related", "lists.related_model": "intfloat/e5-base-v2"})
    assert node(related, "lists@1").hours.formula.startswith("4,000,000 tokens")
