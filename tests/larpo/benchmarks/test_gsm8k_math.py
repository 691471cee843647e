r"""GSM8K's two filters and MATH's boxed answers on hard cases; prompts word for word; real data where it lies."""

import gzip
import json

import pandas as pd
import pytest

from larpo.benchmarks import score_file
from larpo.benchmarks.gsm8k import METRICS, correct, extract
from larpo.load import check_params
from larpo.rewards.answers import final_answer
from tests.larpo.benchmarks.kit import DATA, bench, needs_data, params, refused, write


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("6 * 7 = 42\n#### 42", "42", "42"),
        ("#### 1,234.", "1,234.", "1,234."),
        ("#### -3 and then #### 8", "-3", "8"),  # strict takes the first mark, flexible the last number
        ("####42", None, "42"),  # the mark needs its space
        ("The answer is $1,000.50.", None, "$1,000.50."),
        ("It costs 7", None, "7"),  # one digit: the second alternative
        ("between 3 and -5", None, "-5"),
        ("no number", None, None),
        ("wait...", None, "..."),  # the pattern takes dots for a number; the harness does too
        ("", None, None),
    ],
)
def test_filters(text, strict, flexible):
    assert (extract(text, "strict"), extract(text, "flexible")) == (strict, flexible)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("#### 1,234.", "1234", True),  # comma and closing full stop are ignored
        ("#### $5", "5", False),  # the strict pattern stops at the dollar sign
        ("#### 5.0", "5", False),  # compared as text
        ("#### 18", "working <<9*2=18>>18\n#### 18", True),  # the target loses all before its mark
        ("[invalid]", "[invalid]", True),
    ],
)
def test_comparison_is_of_text(text, answer, right):
    assert correct(text, answer, "strict") is right


def test_prompt_word_for_word_and_examples(tmp_path):
    rows = [{"question": f"Q{i}?", "answer": f"It is <<1+{i}={i + 1}>>{i + 1}.\n#### {i + 1}"} for i in range(3)]
    path = str(write(tmp_path / "test.jsonl", rows))
    items = bench("gsm8k", data=path).items()
    asked = (
        "Q0?\n\nSolve the problem step by step. Then write the final answer on a line of its own as #### followed by "
        "the number."
    )
    assert items["messages"][0] == [{"role": "user", "content": asked}]
    assert items["answer"].tolist() == ["1", "2", "3"]
    shots = bench("gsm8k", data=path, options={"shots": 1, "examples": path, "system": "S"}).items()
    assert [m["role"] for m in shots["messages"][2]] == ["system", "user", "assistant", "user"]
    assert shots["messages"][2][2]["content"] == "It is 1.\n#### 1"
    assert shots["prompt_id"].tolist() == items["prompt_id"].tolist(), "an item stays the same item"


def test_gsm8k_scores_both_filters_from_the_same_outputs():
    """Strict reads 1 of 2, flexible 2 of 2; the table holds what `filter` says."""
    items = pd.DataFrame({"prompt_id": ["a", "b"], "answer": ["4", "5"]})
    outputs = pd.DataFrame({"prompt_id": ["a", "b"], "text": ["#### 4", "so 5"], "finish_reason": ["stop", "length"]})
    flexible, strict = (bench("gsm8k", data="x/y", options={"filter": name}) for name in ("flexible", "strict"))
    scored = flexible.score(items, outputs)
    assert scored["score"].tolist() == [1.0, 1.0]
    assert strict.score(items, outputs)["score"].tolist() == [1.0, 0.0]
    frame = outputs.join(scored).merge(items, on="prompt_id").assign(sample=-1, turn=0, temperature=0.0, n_tokens=3)
    metrics = strict.aggregate(items, frame)
    assert {k: v["value"] for k, v in metrics["scores"].items()} == {"flexible": 1.0, "strict": 0.5, "answer": 1.0}
    assert (metrics["template"]["shots"], metrics["template"]["system"]) == (0, None)
    assert metrics["template"]["user"].startswith("{question}\n\nSolve the problem step by step.")
    # One answer has one vote, however it is written; what is no number has none.
    parsed = flexible.score(items, outputs.assign(text=["it is $1,000.", "so 1000"]))["parsed"]
    assert parsed.tolist() == ["1000", "1000"]
    assert flexible.score(items, outputs.assign(text=["well...", "none"]))["parsed"].isna().tolist() == [False, True]


def test_choosing_items_depends_on_the_items_alone(tmp_path):
    rows = [{"question": f"Q{i}?", "answer": f"#### {i}"} for i in range(40)]
    a, b = str(write(tmp_path / "a.jsonl", rows)), str(write(tmp_path / "b.jsonl", rows[::-1]))
    first, second = (bench("gsm8k", data=data, items=7).items()["prompt_id"].tolist() for data in (a, b))
    assert len(set(first)) == 7 and first == second[::-1]
    shots = bench("gsm8k", data=a, options={"shots": 41, "examples": b})
    refused(["shots: 41 asked for, the examples are 40"], shots.items)
    refused(["items: 41 asked for, the source has 40"], bench("gsm8k", data=a, items=41).items)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "./absent.jsonl"}, ["benchmarks.b.data", "absent.jsonl", "not found"]),
        ({"options": {"shotz": 2}}, ["benchmarks.b.options.shotz", "did you mean 'shots'"]),
        ({"options": {"filter": "loose"}}, ["benchmarks.b.options.filter", "'loose'"]),
        ({"options": {"examples": "./absent.jsonl"}}, ["benchmarks.b.options.examples", "absent.jsonl"]),
        ({"options": {"ns": [1, 8]}}, ["benchmarks.b.options.ns", "8 asked for", "generate.samples is 0"]),
        ({"options": {"ns": [0]}}, ["benchmarks.b.options.ns.0", "greater than or equal to 1"]),
        ({"judge": "gpt"}, ["benchmarks.b.judge", "judges"]),
        ({"benchmark": "math", "options": {"shots": 1}}, ["benchmarks.b.options.examples", "name one"]),
    ],
)
def test_refusals(settings, words):
    entry = {"benchmark": "gsm8k", "generate": {"max_new_tokens": 64}} | settings
    refused(words, lambda: check_params(params(benchmarks={"b": entry})))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{x^{2}}", "x^{2}"),
        (r"\boxed 7$ done", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\frac{1}{", None),
        (r"\boxed{}", None),
        ("42", None),
    ],
)
def test_boxes(text, answer):
    assert final_answer(text) == answer


def test_score_file(tmp_path):
    """GSM8K, 2 of 3 flexible: Wilson of 2/3 is 0.2077 to 0.9385; strict 1 of 3."""
    rows = [
        {"question": "a", "answer": "x #### 4", "response": "#### 4"},
        {"question": "b", "answer": "#### 1,000", "response": "it is $1000."},
        {"question": "c", "answer": "#### 5", "response": "none"},
    ]
    scores = score_file("gsm8k", write(tmp_path / "outputs.jsonl", rows))
    assert scores["items"] == 3
    assert scores["scores"]["flexible"] == pytest.approx({"value": 2 / 3, "low": 0.2077, "high": 0.9385}, abs=1e-4)
    assert scores["scores"]["strict"]["value"] == pytest.approx(1 / 3)
    assert scores["unparsed"] == pytest.approx({"strict": 2 / 3, "flexible": 1 / 3, "answer": 1 / 3})
    # Gzipped, with a byte-order mark, the unanswered response as null: the same.
    rows[2]["response"] = None
    packed = tmp_path / "outputs.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode("utf-8-sig")))
    assert score_file("gsm8k", packed) == scores
    bad = write(tmp_path / "bad.jsonl", [{"question": "a", "answer": "4"}])
    refused(["bad.jsonl, line 1: response", "expected GSM8K rows"], score_file, "gsm8k", bad)
    refused(["did you mean 'gsm8k'"], score_file, "gsm8", bad)
    half = [{"problem": "p", "solution": r"\boxed{5}", "response": r"\boxed{5.0}"}, {"problem": "q", "answer": "1"}]
    scores = score_file("math", write(tmp_path / "math.jsonl", [r | {"response": r.get("response")} for r in half]))
    assert (scores["scores"]["boxed"]["value"], scores["unparsed"]) == (0.5, 0.5)


@needs_data
def test_gold_answers_are_right_and_others_are_not(tmp_path):
    rows = [json.loads(line) for line in (DATA / "gsm8k/test.jsonl").read_text().splitlines()]
    scores = score_file("gsm8k", write(tmp_path / "gold.jsonl", [row | {"response": row["answer"]} for row in rows]))
    assert scores["items"] == 1319
    assert [scores["scores"][name]["value"] for name in METRICS] == [1.0, 1.0, 1.0]
    rows = [json.loads(line) for line in (DATA / "math/math500.jsonl").read_text().splitlines()][:120]
    scores = score_file("math", write(tmp_path / "gold.jsonl", [row | {"response": row["solution"]} for row in rows]))
    assert scores["scores"]["boxed"]["value"] == 1.0
    shifted = [row | {"response": rows[i - 1]["solution"]} for i, row in enumerate(rows)]
    assert score_file("math", write(tmp_path / "shifted.jsonl", shifted))["scores"]["boxed"]["value"] < 0.1
    with gzip.open(DATA / "math/test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [r["answer"] for r in rows if final_answer(r["solution"]) != r["answer"].strip()] == []
