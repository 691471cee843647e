r"""GSM8K's two filters and MATH's boxed answers on hard cases; prompts word for word; real data where it lies."""

from __future__ import annotations

import gzip
import json

import pandas as pd
import pytest

from larpo.benchmarks import build_benchmark, score_file
from larpo.benchmarks.gsm8k import correct, extract
from larpo.benchmarks.math import equivalent, last_boxed
from larpo.errors import UserError
from tests.conftest import ROOT
from tests.larpo.benchmarks.test_held_out import params

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="benchmark data is not beside the checkout")
GENERATE = {"max_new_tokens": 64}


def bench(kind: str, **settings):
    return build_benchmark(params(benchmarks={"b": {"benchmark": kind, "generate": GENERATE} | settings}), "b")


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
    assert extract(text, "strict") == strict
    assert extract(text, "flexible") == flexible


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
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = bench("gsm8k", data=str(path)).items()
    asked = (
        "Q0?\n\nSolve the problem step by step. Then write the final answer on a line of its own as #### followed by "
        "the number."
    )
    assert items["messages"][0] == [{"role": "user", "content": asked}]
    assert items["answer"].tolist() == ["1", "2", "3"]
    shots = bench("gsm8k", data=str(path), options={"shots": 1, "examples": str(path), "system": "S"}).items()
    assert [m["role"] for m in shots["messages"][2]] == ["system", "user", "assistant", "user"]
    assert shots["messages"][2][2]["content"] == "It is 1.\n#### 1"
    assert shots["prompt_id"].tolist() == items["prompt_id"].tolist(), "an item stays the same item"


def test_gsm8k_scores_both_filters_from_the_same_outputs():
    """Strict reads 1 of 2, flexible 2 of 2; the table holds what `filter` says."""
    items = pd.DataFrame({"prompt_id": ["a", "b"], "answer": ["4", "5"]})
    outputs = pd.DataFrame({"prompt_id": ["a", "b"], "text": ["#### 4", "so 5"], "finish_reason": ["stop", "length"]})
    scored = bench("gsm8k", data="x/y").score(items, outputs)
    assert scored["score"].tolist() == [1.0, 1.0]
    strict = bench("gsm8k", data="x/y", options={"filter": "strict"})
    assert strict.score(items, outputs)["score"].tolist() == [1.0, 0.0]
    frame = outputs.join(scored).merge(items, on="prompt_id").assign(sample=-1, turn=0, temperature=0.0, n_tokens=3)
    metrics = strict.aggregate(items, frame)
    assert {k: v["value"] for k, v in metrics["scores"].items()} == {"flexible": 1.0, "strict": 0.5}
    assert (metrics["template"]["shots"], metrics["template"]["system"]) == (0, None)
    assert metrics["template"]["user"].startswith("{question}\n\nSolve the problem step by step.")
    # One answer has one vote, however it is written; what is no number has none.
    outputs["text"] = ["it is $1,000.", "so 1000"]
    assert bench("gsm8k", data="x/y").score(items, outputs)["parsed"].tolist() == ["1000", "1000"]
    outputs["text"] = ["well...", "none"]
    assert bench("gsm8k", data="x/y").score(items, outputs)["parsed"].isna().tolist() == [False, True]


def test_choosing_items_depends_on_the_items_alone(tmp_path):
    rows = [{"question": f"Q{i}?", "answer": f"#### {i}"} for i in range(40)]
    for name, some in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    a, b = (bench("gsm8k", data=str(tmp_path / n), items=7).items() for n in ("a.jsonl", "b.jsonl"))
    assert len(a) == 7 and set(a["prompt_id"]) == set(b["prompt_id"])
    assert a["prompt_id"].tolist() == b["prompt_id"].tolist()[::-1]
    shots = bench("gsm8k", data=str(tmp_path / "a.jsonl"), options={"shots": 41, "examples": str(tmp_path / "b.jsonl")})
    with pytest.raises(UserError, match="shots: 41 asked for, the examples are 40"):
        shots.items()
    with pytest.raises(UserError, match="41 asked for, the source has 40"):
        bench("gsm8k", data=str(tmp_path / "a.jsonl"), items=41).items()


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
    ],
)
def test_refusals(settings, words):
    from larpo.load import check_params

    entry = {"benchmark": "gsm8k", "generate": GENERATE} | settings
    with pytest.raises(UserError) as caught:
        check_params(params(benchmarks={"b": entry}))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\fbox{x^{2}}", "x^{2}"),
        (r"\boxed 7$ done", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\frac{1}{", None),
        (r"\boxed{}", None),
        ("42", None),
    ],
)
def test_last_boxed(text, found):
    assert last_boxed(text) == found


@pytest.mark.parametrize(
    ("found", "gold", "same"),
    [
        (r"\frac12", r"\frac{1}{2}", True),
        ("0.5", r"\frac{1}{2}", True),
        ("2", "3", False),
        (r"\text{Evelyn}", r"\text{Evelyn}", True),
        (r"(1, 2)", "(1,2)", True),
        (None, "1", False),
    ],
)
def test_equivalence(found, gold, same):
    assert equivalent(found, gold) is same


def test_score_file(tmp_path):
    """GSM8K, 2 of 3 flexible: Wilson of 2/3 is 0.2077 to 0.9385; strict 1 of 3."""
    rows = [
        {"question": "a", "answer": "x #### 4", "response": "#### 4"},
        {"question": "b", "answer": "#### 1,000", "response": "it is $1000."},
        {"question": "c", "answer": "#### 5", "response": "none"},
    ]
    path = tmp_path / "outputs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = score_file("gsm8k", path)
    assert found["items"] == 3
    assert found["scores"]["flexible"] == pytest.approx({"value": 2 / 3, "low": 0.2077, "high": 0.9385}, abs=1e-4)
    assert found["scores"]["strict"]["value"] == pytest.approx(1 / 3)
    assert found["unparsed"] == {"strict": pytest.approx(2 / 3), "flexible": pytest.approx(1 / 3)}
    # Gzipped, with a byte-order mark, the unanswered response as null: the same.
    rows[2]["response"] = None
    packed = tmp_path / "outputs.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode("utf-8-sig")))
    assert score_file("gsm8k", packed) == found
    path.write_text('{"question": "a", "answer": "4"}')
    with pytest.raises(UserError, match="row 0: expected text under 'response'"):
        score_file("gsm8k", path)
    path.write_text('{"a": 1}\n{broken')
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        score_file("gsm8k", path)
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        score_file("gsm8", path)


@needs_data
def test_gsm8k_gold_answers_are_right_under_both_filters(tmp_path):
    rows = [json.loads(line) for line in (DATA / "gsm8k/test.jsonl").read_text().splitlines()]
    path = tmp_path / "gold.jsonl"
    path.write_text("\n".join(json.dumps(row | {"response": row["answer"]}) for row in rows))
    found = score_file("gsm8k", path)
    assert found["items"] == 1319
    assert [found["scores"][f]["value"] for f in ("strict", "flexible")] == [1.0, 1.0]


@needs_data
def test_math_gold_solutions_are_right_and_others_are_not(tmp_path):
    rows = [json.loads(line) for line in (DATA / "math/math500.jsonl").read_text().splitlines()][:120]
    path = tmp_path / "gold.jsonl"
    path.write_text("\n".join(json.dumps(row | {"response": row["solution"]}) for row in rows))
    assert score_file("math", path)["scores"]["boxed"]["value"] == 1.0
    shifted = [row | {"response": rows[i - 1]["solution"]} for i, row in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, shifted)))
    assert score_file("math", path)["scores"]["boxed"]["value"] < 0.1


@needs_data
def test_boxed_answers_equal_those_that_the_data_states():
    with gzip.open(DATA / "math/test.jsonl.gz", "rt") as f:
        rows = [json.loads(line) for line in f]
    assert [r["answer"] for r in rows if last_boxed(r["solution"]) != r["answer"].strip()] == []
