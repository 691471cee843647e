"""Where recorded and recomputed numbers differ; the card and the page made of it."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.audit.card import Evidence, card
from larpo.audit.compare.values import EXACT, close, different_rows, different_values, same
from larpo.audit.draw import draw
from larpo.audit.page import SHOWN, record, render
from larpo.audit.record import Manifest, Notes
from larpo.audit.results import STATUS, conclude, counted, fails, holds, unchecked, verdict_of
from larpo.audit.science.rewards import rewards_again
from larpo.config.sections import ScoreParams
from tests.conftest import ROOT, larpo_command


def test_tolerance_by_hand():
    """Allowed at 1e-3: 1e-3 · (1 + |−9|) = 0.01."""
    assert close(-9.0, -9.0099, 1e-3) and not close(-9.0, -9.0101, 1e-3)
    assert close(math.nan, math.nan, 0) and not close(math.nan, 0.0, 1.0) and not close(0.0, math.nan, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (1, True, False),
        (None, 0, False),
        ("1", 1, False),
        ({"a": [1, 2]}, {"a": [1, 2 + 1e-12]}, True),
        (10**9, 10**9 + 1, False),  # whole numbers have no tolerance
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, False),
        ({"a": 1}, {"b": 1}, False),
    ],
)
def test_sameness(a, b, equal):
    assert same(a, b, EXACT) is equal


def test_rows_are_named_as_in_the_file():
    recorded = pd.DataFrame({"x": [1.0, 2.0, np.nan], "t": ["a", None, "c"]}, index=[4, 7, 9])
    again = pd.DataFrame({"x": [1.0, 2.5, np.nan], "t": ["a", "b", "d"]})
    assert different_rows("f", recorded, again, ["x", "t"]) == [
        "f, row 7: x is 2.0, computed again 2.5",
        "f, row 9: t is 'c', computed again 'd'",
    ]
    assert different_rows("f", recorded, again.iloc[:2], ["x"]) == ["f: 3 rows, computed again 2"]
    assert different_rows("f", recorded, recorded, ["x", "t"]) == []


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.dictionaries(st.text(), s)))
def test_a_tree_never_differs_from_itself(tree):
    assert different_values("f", tree, tree) == []
    assert different_values("f", {"a": [0.1, 2]}, {"a": [np.float64(0.1), np.int64(2)]}) == []


def test_leaves_are_named_by_their_keys():
    recorded, again = {"a": {"b": [1, 2]}, "c": 1}, {"a": {"b": [1, 3]}, "d": 2}
    assert different_values("f", recorded, again) == [
        "f: a.b.1 is 2, computed again 3",
        "f: c is 1, computed again absent",
        "f: d is absent, computed again 2",
    ]


def test_rewards_of_rows_out_of_order():
    """Rows of two prompts mixed; 1 for the right number, less 0.5 where the response was cut and 0.1 a token."""
    prompts = pd.DataFrame(
        {"prompt_id": ["p", "q"], "messages": [[{"role": "user", "content": "?"}]] * 2, "answer": ["1", "2"]}
    )
    responses = pd.DataFrame(
        {
            "prompt_id": ["q", "p", "q"],
            "text": ["2", "2", "2"],
            "token_ids": [[1], [1, 2], [1]],
            "finish_reason": ["stop", "stop", "length"],
        },
        index=[3, 5, 8],
    )
    score = ScoreParams(reward="final_number", truncation_penalty=0.5, length_penalty=0.1)
    found = rewards_again(score, prompts, responses, None)
    assert found["reward"].tolist() == pytest.approx([1 - 0.1, 0 - 0.2, 0 - 0.5 - 0.1])
    assert found["correct"].tolist() == [True, False, False]


def test_verdicts():
    assert conclude("bytes", "n", 3, "d", []).verdict == "holds"
    assert conclude("bytes", "n", 0, "d", []).verdict == "not checked", "nothing checked does not hold"
    assert conclude("bytes", "n", 0, "d", ["x"]).verdict == "fails"
    good, bad, none = holds("bytes", "a", 1, ""), fails("bytes", "b", 1, "", ["x"]), unchecked("again", "c", "reason")
    aside, part = unchecked("lineage", "e", "", behind=False), conclude("science", "d", 3, "", [], ["x", "y"])
    whole = {
        "holds": [[good], [good, aside, counted("science", "f", 1, "")]],
        "does not hold": [[bad], [good, none, bad]],
        "holds, but not everything was checked": [[], [none], [aside], [good, none], [good, part]],
    }
    assert whole.keys() == STATUS.keys() and list(STATUS.values()) == [0, 1, 3]
    for verdict, sets in whole.items():
        assert {verdict_of(checks)[0] for checks in sets} == {verdict}
    assert verdict_of([good, none, part])[1] == "c: reason (and 2 more)" and verdict_of([none, bad])[1] == "b: x"


PARAMS = {
    "seed": 0,
    "prompts": {"per_iteration": 2, "held_out": 0.3},
    "iterations": {"1": {"temperatures": [1.0]}},
    "benchmarks": {"b": {"data": None}},
    "train": {"objective": "o", "objective_options": {}, "learning_rate": 1e-5, "epochs": 1, "lists_per_step": 2},
    "sample": {"responses": 4},
}


def test_a_card_without_evidence_says_no_and_what_is_missing():
    answers = {a.variable: a for a in card(Evidence({}, {}, PARAMS, []))}
    assert answers["Hardware specification"].answer == answers["Open datasets"].answer == "no"
    assert answers["Pseudocode"].answer == "no" and len(answers["Pseudocode"].missing) == 9
    assert answers["Dataset splits"].answer == "partly"
    broken = fails("lineage", "manifests' parameters", 1, "", ["train@1: learning_rate"])
    answers = {a.variable: a for a in card(Evidence({}, {}, PARAMS, [broken]))}
    assert answers["Experiment setup"].answer == "partly"
    assert answers["Experiment setup"].missing == ("manifests' parameters: train@1: learning_rate",)


def test_the_card_says_how_exact_the_training_was():
    def manifest(**notes) -> Manifest:
        return Manifest(node="", inputs={}, outputs={}, params={}, notes=Notes(**notes))

    ran = {
        "reference@1": manifest(exactness=2e-7, drift={"mean": 1e-6, "largest": 4e-6}),
        "train@1": manifest(exactness=3e-7, weights_changed=0.987),
    }
    setup = next(a for a in card(Evidence(ran, {}, PARAMS, [])) if a.variable == "Experiment setup").evidence
    assert any("within 3.0e-07 nats" in line and "within 4.0e-06 of" in line for line in setup)
    assert "weights that training changed: train@1 98.7%" in setup


FACTS = {"run": "r", "commit": None, "nodes": 1, "when": "now", "seconds": 1.0, "auditor": "a", "seed": 7, "sample": 64}


@pytest.mark.parametrize(
    ("check", "status", "first"),
    [
        (holds("bytes", "a", 1, ""), 0, "holds"),
        (fails("bytes", "a", 1, "", ["x: byte 3"]), 1, "does not hold: a: x: byte 3"),
        (unchecked("again", "a", "no GPU"), 3, "holds, but not everything was checked: a: no GPU"),
    ],
)
def test_the_verdict_is_the_first_line_and_the_exit_status(monkeypatch, tmp_path, check, status, first):
    asked = []
    tree = record(FACTS, [check], card(Evidence({}, {}, PARAMS, [])))
    monkeypatch.setattr("larpo.audit.run.audit", lambda *arguments: asked.append(arguments[2]) or tree)
    done = larpo_command(ROOT, "audit", "--seed", "7", "--sample", "9", "--out", str(tmp_path))
    assert done.returncode == status and done.stdout.splitlines()[0] == first
    assert asked[0].draw == draw(7, 9) and "drawn by seed 7 (--seed), 64 rows" in done.stdout
    assert first.partition(":")[0] in render(tree)


def test_the_page_escapes_and_tells_how_many_more():
    evil = "<script>alert(1)</script>"
    lines = [f"{evil} {i}" for i in range(SHOWN + 5)]
    facts = FACTS | {"run": evil, "auditor": evil}
    tree = record(facts, [fails("science", "lists", 9, evil, lines)], card(Evidence({}, {}, PARAMS, [])))
    assert tree["holds"] is False and tree["checks"][0]["failed"] == SHOWN + 5
    page = render(tree)
    assert evil not in page and page.count("&lt;script&gt;") >= SHOWN + 2
    assert "and 5 more" in page
    assert not re.search(r"(src|href)=", page), "the page fetches nothing"
