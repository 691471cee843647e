"""One idea of an answer: the table of cases by every rule that reads numbers or mathematics, votes, hostile input."""

import time

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.benchmarks.verifiable import aggregate
from larpo.rewards import build_reward
from larpo.rewards.answers import final_answer, final_number, number
from larpo.rewards.mathematics import ask_math, vote_keys
from tests.larpo.benchmarks.kit import bench
from tests.larpo.rewards.answer_cases import MATH, NUMBERS, UNBOXED

LONG = "12345678901234567890123456789"  # 29 digits: one more than decimal arithmetic keeps


def named(cases):
    return [pytest.param(*case[1:], id=f"{case[0]} {i}") for i, case in enumerate(cases)]


@pytest.mark.parametrize(("text", "gold", "right"), named(NUMBERS))
def test_numbers(text, gold, right):
    """final_number, closeness and GSM8K's own metric agree; the strict filter of the harness is not asked."""
    for rule in ("final_number", "closeness"):
        assert build_reward(rule, {}).score([[]], [gold], [text])["correct"].tolist() == [right]
    items, outputs = (
        pd.DataFrame({"prompt_id": ["a"], "answer": gold}),
        pd.DataFrame({"prompt_id": ["a"], "text": text}),
    )
    scored = bench("gsm8k", data="x/y", options={"filter": "answer"}).score(items, outputs)
    assert scored["score"].tolist() == [float(right)]


def test_mathematics():
    """The benchmark and the rule agree on answers in boxes; expressions that never end are wrong within seconds."""
    start = time.process_time(), time.monotonic()
    kinds, texts, golds, right = zip(*MATH, strict=True)
    ids = [str(i) for i in range(len(texts))]
    items, outputs = (pd.DataFrame({"prompt_id": ids} | c) for c in ({"answer": golds}, {"text": texts}))
    scored = bench("math", data="x/y").score(items, outputs)
    assert [(t, bool(s)) for t, s in zip(texts, scored["score"], strict=True)] == list(zip(texts, right, strict=True))
    boxed = [i for i, text in enumerate(texts) if final_answer(text) is not None]
    reward = build_reward("math", {}).score([[]] * len(boxed), [golds[i] for i in boxed], [texts[i] for i in boxed])
    assert reward["correct"].tolist() == [right[i] for i in boxed]
    assert "hostile" in kinds and time.process_time() - start[0] < 30 and time.monotonic() - start[1] < 120


def test_the_rule_reads_expressions_outside_boxes():
    texts = [r"so the result is $\frac{2}{4}$", r"<think>\boxed{7}</think> so it is 5.", r"it is $5$, not \boxed{}"]
    found = build_reward("math", {}).score([[]] * 3, ["1/2", "7", "5"], texts)
    assert found["correct"].tolist() == [True, False, True]
    _, texts, golds, right = zip(*UNBOXED, strict=True)
    assert build_reward("math", {}).score([[]] * len(texts), golds, texts)["correct"].tolist() == list(right)


def test_a_hostile_expression_takes_no_other_with_it():
    """The child that computes it is ended by the kernel after a second of processor time; the next pair has another."""
    long = r"\boxed{\int_0^1 \prod_{k=1}^{5000} (x-k)^{k} dx}"
    pairs = [(r"\boxed{2}", r"\boxed{\frac{4}{2}}"), (r"\boxed{2}", long), (r"\boxed{2}", r"\boxed{\sqrt{4}}")]
    assert [equal for _, equal, _ in ask_math(pairs)] == [True, False, True]


def test_votes_are_counted_by_value():
    r"""Five samples, of which three are a half in three spellings, against two 3s: the half wins."""
    answers = [r"\frac{1}{2}", r"\dfrac12", "0.5", "3", "3"]
    rows = [("a", 0.0, -1, 0, "1", 0.0, 1, "stop")]
    rows += [("a", 1.0, i, 0, a, float(a != "3"), 1, "stop") for i, a in enumerate(answers)]
    columns = ["prompt_id", "temperature", "sample", "turn", "parsed", "score", "n_tokens", "finish_reason"]
    strategies = aggregate(pd.DataFrame(rows, columns=columns), [5], bench("math", data="x/y").votes)["strategies"]
    assert [s["value"] for s in strategies if s["strategy"] == "majority_vote"] == [1.0]
    keys = vote_keys(["x+1", "1+x", "2x", None, r"\frac{2}{4}", "0.50"], mathematical=True)
    assert keys["x+1"] == keys["1+x"] != keys["2x"] and keys[r"\frac{2}{4}"] == keys["0.50"]
    assert build_reward("exact_match", {}).votes(["5", "5.0"]) == {"5": "5", "5.0": "5.0"}, "there they are two answers"


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        *[(" 7 ", "7"), ("+7", "7"), ("7.", "7"), ("1e5", "100000"), ("2.50e1", "25"), ("1,234.50", "1234.5")],
        *[("-0", "0"), ("100", "100"), (LONG, LONG), ("12%", "12"), ("1/2", "0.5"), ("2/6", "1/3"), ("3 1/2", "3.5")],
        ("0.1000000000000000000000000000001", "0.1000000000000000000000000000001"),
        *[(text, None) for text in ("1,2,3", "1, 2", "nan", "inf", "1_000", "", "4 5", "#### 4", "1e999999999", "one")],
        *[(text, None) for text in ("x", "2x", r"\frac{1}{0}", r"\sqrt{2}", "(1, 2)", "x = 5", r"\{3\}")],
    ],
)
def test_number(text, spelled):
    assert number(text) == spelled


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**40), 10**40), st.integers(0, 6), st.integers(1, 9))
def test_every_number_is_found_in_any_spelling(value, zeros, divisor):
    decimals = f".{'0' * zeros}" if zeros else ""
    for spelled in (f"{value}{decimals}", f"{value:,}{decimals}", rf"\boxed{{{value:,}{decimals}}}"):
        assert final_number(f"so 1 + 1 = {spelled}.") == str(value)
    assert number(f"{value}{decimals}") == number(f"{value * divisor}/{divisor}") == str(value)
    assert number(rf"\frac{{{value * divisor}}}{{{divisor}}}") == str(value)
