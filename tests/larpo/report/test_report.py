"""The report as a pure function: statistics by hand, empty parts, escaping, self-containment."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.config.params import parse_params
from larpo.graph import kinds
from larpo.report.cells import how_scored, interval, measured, notes, plain
from larpo.report.cells import scores as scores_table
from larpo.report.charts import INK, POINTS, _thin, best_of_n, policy_colours, retrieval, scores
from larpo.report.data import (
    BenchmarkScores,
    BestOfN,
    Estimate,
    Iteration,
    NodeRecord,
    PolicyScore,
    RecallPoint,
    ReportData,
    histogram,
    policy_score,
    recall_curve,
    spread,
)
from larpo.report.page import comparison, grouped, in_rows, render
from larpo.report.page import settings as shown_settings
from larpo.report.picture import draw_graph, duration
from larpo.report.read import columns, nodes
from tests.report_run import SCRIPT, evaluations, params


def score(policy: str, greedy: Estimate | None, passes: dict[int, Estimate]) -> PolicyScore:
    return PolicyScore(policy, 10, 10, 4, 1.0, greedy, passes, None, None, None, None, None)


def page(**changes) -> str:
    parts = {"title": "T", "settings": params(), "benchmarks": [], "iterations": [], "nodes": []}
    parts["settings"]["lists"]["memory"], parts["settings"]["train"]["objective"] = "all", "lambdarank"
    return render(ReportData(**(parts | changes)))


EMPTY = Iteration("1", "0", [0.7], 0, np.empty(0), None, None, 0, 0, "0" * 32, None, None, {}, [])


def test_every_node_of_the_graph_has_a_place_in_its_picture():
    """A run with something in every section; the column of each kind is one that the picture has."""
    tuned = {"previous": "0", "learning_rate": 1e-5, "data": {"tasks": [{"name": "chain_sum"}]}}
    best = {"policy": "2", "benchmark": "held_out", "ns": [1]}
    found = {"model": "a/b", "corpus": "c.jsonl", "queries": "q.jsonl"}
    run = parse_params(params(sft={"base": tuned}, best_of_n={"x": best}, retrieval={"y": found}, reward={}))
    drawn = draw_graph(nodes(run), columns(), {})
    names = {n.stage for n in nodes(run)}
    assert {name.partition("@")[0] for name in names} == set(kinds()) - {"inputs", "report"}  # on which all depend
    assert all(f"<title>{name}</title>" in drawn for name in names)


def test_a_node_of_the_picture_tells_label_kind_and_time_each_on_a_line():
    node = NodeRecord("generate@2-x", "generate", "2", (), {"seconds": 110.0}, "generate", "question_sample")
    lines = re.findall(r"<text[^>]*>(.*?)</text>", draw_graph([node], ["generate"], {}))
    assert lines == ["question_sam…", "generate", "1 min 50 s"]


def test_recall_curve_by_hand():
    """Two items, four samples, 1 and 3 right. N=1: (1/4 + 3/4)/2 = 1/2. N=2: 1 − C(3,2)/C(4,2) = 1/2 and
    1 − 0 = 1, mean 3/4. N=3: 1 − 1/4 = 3/4 and 1, mean 7/8. N=4: 1. Interval at N=1: values 1/4 and 3/4,
    s = √(1/8), half-width 1.96·s/√2 = 1.96/4 = 0.48999."""
    curve = recall_curve(evaluations(np.array([1, 3]), np.array([1, 0])))
    assert [p.n for p in curve] == [1, 2, 3, 4]
    assert [p.estimate.value for p in curve] == pytest.approx([0.5, 0.75, 0.875, 1.0])
    assert (curve[0].estimate.low, curve[0].estimate.high) == pytest.approx((0.01000901, 0.98999099))


def test_graded_scores_have_no_recall():
    frame = evaluations(np.array([1, 3]), np.array([1, 0]))
    frame.loc[frame["sample"] == 0, "score"] = 0.5
    assert recall_curve(frame) == []
    assert recall_curve(frame[frame["sample"] < 0]) == []


def test_interval_of_a_single_item_is_unknown():
    """One item has no standard error: anything between 0 and 1 is possible, and infinity is not JSON."""
    curve = recall_curve(evaluations(np.array([2]), np.array([1])))
    assert curve[0].estimate == Estimate(0.5, 0.0, 1.0)
    metrics = {"policy": "0", "pass": {"1": {"value": 0.5, "low": float("-inf"), "high": float("inf")}}, "greedy": None}
    flat = policy_score(metrics, evaluations(np.array([2]), np.array([1]))).flat()
    assert (flat["pass_1"], flat["pass_1_low"], flat["greedy_accuracy"], flat["k"]) == (0.5, None, None, 1)


def test_pass_k_is_the_largest_budget():
    passes = {"1": {"value": 0.2}, "8": {"value": 0.6}, "2": {"value": 0.3}, "16": {"value": 0.7}}
    flat = policy_score({"policy": "0", "pass": passes}, evaluations(np.array([2]), np.array([1]))).flat()
    assert (flat["k"], flat["pass_k"]) == (16, 0.7)


def test_the_score_of_a_benchmark_is_its_headline():
    """Its metrics file is sorted: `free_form` stands before `overall`."""
    scores = {"free_form": {"value": 0.1}, "multiple_choice": {"value": 0.3}, "overall": {"value": 0.2}}
    found = policy_score({"policy": "0", "scores": scores}, evaluations(np.array([2]), np.array([1])))
    assert list(found.measures()) == ["overall", "free form", "multiple choice"] and found.flat()["score"] == 0.2


def test_spread_by_hand():
    """0..100: the p-th percentile is p."""
    assert vars(spread(np.arange(101))) == {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}
    assert spread(np.empty(0)) is None


def test_histogram_by_hand():
    """Three of four zeros and one of two: 3/4, 1/4 and 1/2, 1/2; an empty group has no mass."""
    labels, shares = histogram([np.array([0, 0, 0, 1.0]), np.array([1.0, 0]), np.empty(0)])
    assert labels == ["0", "1"]
    assert [s.tolist() for s in shares] == [[0.75, 0.25], [0.5, 0.5], [0, 0]]


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_histogram_loses_nothing(groups):
    labels, shares = histogram([np.array(g) for g in groups])
    assert all(len(s) == len(labels) and s.sum() == pytest.approx(1) for s in shares)


@given(st.integers(1, 5000))
@settings(deadline=None, max_examples=30)
def test_thinning_keeps_mean_level_and_order(n):
    thin = _thin([(i, float(i)) for i in range(n)])
    assert len(thin) == min(n, POINTS)
    assert all(a[0] < b[0] for a, b in pairwise(thin))
    assert all(step == pytest.approx(value) for step, value in thin)


def test_comparison_tells_overlap_from_separation():
    """[20, 30] and [31, 40] lie apart; [20, 30] and [30, 40] touch, which is no separation."""
    first = score("0", Estimate(0.25, 0.2, 0.3), {1: Estimate(0.25, 0.2, 0.3)})
    last = score("2", Estimate(0.35, 0.31, 0.4), {1: Estimate(0.35, 0.3, 0.4)})
    greedy, pass1 = comparison(BenchmarkScores("b", "held_out", [first, last]))
    assert greedy == "Greedy accuracy: 25.0 % (policy 0) → 35.0 % (policy 2); the 95 % intervals lie apart."
    assert pass1.endswith("the 95 % intervals overlap.")
    assert comparison(BenchmarkScores("b", "held_out", [first])) == []


def test_words():
    assert interval(Estimate(0.5, 0.251, 0.749)) == "[25.1, 74.9]"
    assert interval(Estimate(0.5)) == ""
    assert [duration(s) for s in (3.14, 65, 3600 + 61)] == ["3.1 s", "1 min 05 s", "1 h 01 min"]
    assert shown_settings({"s": {"a": {"b": [1], "c": {}}, "d": None}, "e": {}, "f": None, "g": 0}) == [
        ("s", [("a.b", "[1]"), ("a.c", "{}"), ("d", "null")]),
        ("g", [("", "0")]),
    ]
    told = {"lists": 4, "share": 0.12345, "of": {"a": [1, 2], "b": {}}, "none": None, "drift": {"mean": 1}}
    assert notes({"notes": told}) == "lists 4; share 0.1235; of.a 1, 2"


@pytest.mark.parametrize("count", [1, 4, 8, 9, 30])
def test_every_policy_has_its_own_colour(count):
    colours = policy_colours(map(str, range(count)))
    assert len(set(colours.values())) == count
    assert all(re.fullmatch("#[0-9a-f]{6}", c) for c in colours.values())


def test_nodes_that_ran_differently_are_told_apart():
    records = [NodeRecord(s, s, "0", (), {"git": g}) for s, g in (("a", "x"), ("b", "y"), ("c", "x"))]
    records.append(NodeRecord("d", "d", "0", (), None))
    assert grouped(records, lambda m: m["git"]) == [("x", "a, c"), ("y", "b")]
    assert grouped(records[:1], lambda m: m["git"]) == [("x", "every node")]


def test_a_run_with_nothing_in_it_still_makes_a_page():
    """And says nothing of what is not there: no heading, no column, no figure."""
    html = page(
        benchmarks=[BenchmarkScores("judge", "judge", [score("0", None, {})])],
        iterations=[EMPTY],
        nodes=[NodeRecord("train@1", "train", "1", ("data/policy/1",), None, "train")],
        columns=["train"],
    )
    heads = re.findall(r'<th class="[nt]">([^<]*)</th>', html)
    assert (
        " ".join(heads)
        == "Iteration Starts from Temperatures Prompts Responses Lists Rows in lists Data hash Node Output hash"
    )
    assert "no manifest" in html
    assert not re.search(r'<figure class="chart"|–</td>|>–<|id="(rewards|retrieval|best_of_n|environment)"', html)


def test_a_benchmark_with_a_score_of_its_own():
    """Neither a column nor a sentence about right answers, which it has none of; its own score in their place."""
    scored = [
        replace(score(p, None, {}), samples=None, temperature=None, scores={"overall": Estimate(v, v - 0.1, v + 0.1)})
        for p, v in (("0", 0.2), ("1", 0.25))
    ]
    bench = BenchmarkScores("questions", "mixeval", scored)
    assert [c.head for c in scores_table(bench, {"0": "#000", "1": "#111"})] == ["Policy", "overall"]
    assert comparison(bench) == ["Overall: 20.0 % (policy 0) → 25.0 % (policy 1); the 95 % intervals overlap."]


def test_what_was_measured_in_one_row_keeps_its_column():
    columns = [plain("a", [None, None]), plain("b", [None, 0.0]), plain("c", [1, 2])]
    assert [(c.head, [cell and cell.text for cell in c.cells]) for c in measured(columns)] == [
        ("b", [None, "0.0"]),
        ("c", ["1", "2"]),
    ]


def test_the_same_model_is_a_table():
    one = replace(
        EMPTY,
        drift={"mean": 1.5e-6, "largest": 4e-6},
        exactness={"reference": 2e-7, "train": 3e-7},
        weights_changed=0.987,
        computed="packed lists",
        step0_loss=0.6931,
        step0_expected=0.6931,
    )
    html = page(iterations=[one])
    for shown in ("1.5e−06<small>at most 4.0e−06</small>", "2.0e−07", "3.0e−07", "98.7 %", "packed lists"):
        assert f"{shown}</td>" in html


@pytest.mark.parametrize(
    ("count", "rows"), [(0, []), (1, [1]), (3, [3]), (4, [2, 2]), (5, [3, 2]), (6, [3, 3]), (7, [3, 2, 2])]
)
def test_no_row_of_charts_is_half_empty(count, rows):
    assert [len(row) for row in in_rows([("svg", "t", ""), (None, "t", "")] * count)] == rows


def test_a_colour_is_a_policy():
    """Charts of scores have the policies' colours and no other; what is no policy has the colour of the text."""
    points = [RecallPoint(n, Estimate(0.5, 0.4, 0.6)) for n in (1, 2)]
    one = [score(p, Estimate(0.5, 0.4, 0.6), {1: Estimate(0.5), 4: Estimate(0.9)}) for p in ("0", "1")]
    shades = policy_colours(["0", "1", "2"])
    drawn = {
        "scores": (scores(BenchmarkScores("b", "held_out", one), shades, "s"), {shades["0"], shades["1"]}),
        "retrieval": (retrieval({"a long name of a retriever, by answer": points, "b": points}, "r"), {INK}),
        "best of N": (best_of_n(BestOfN("x", "2", "b", "r", points, points, points), shades["2"], "b"), {shades["2"]}),
    }
    for name, (svg, expected) in drawn.items():
        marks = re.findall(r'<path[^>]*(?:fill|stroke)="(#\w+|currentColor)"', svg)
        axes = {"#888"}
        assert set(marks) - axes == expected, name
    assert "a long name of a retriever, by answer" in drawn["retrieval"][0]
    for name in ("retrieval", "best of N"):
        symbols = re.findall(r'role-legend-symbol"[^>]*><path ([^>]*)>', drawn[name][0])
        dashes = {re.search(r'stroke="[^"]+".* stroke-dasharray="([\d,]+)"', symbol)[1] for symbol in symbols}
        assert len(dashes) == len(symbols) >= 2, "curves are told apart by what the legend draws"


def test_names_cannot_inject_markup():
    one = score("0", Estimate(0.5, 0.4, 0.6), {1: Estimate(0.5, 0.4, 0.6)})
    html = page(title=SCRIPT, benchmarks=[BenchmarkScores(SCRIPT, "held_out", [one])])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 3


def test_ids_are_unique_and_nothing_is_fetched():
    one = [score(p, Estimate(0.5, 0.4, 0.6), {1: Estimate(0.5), 4: Estimate(0.9)}) for p in ("0", "1")]
    html = page(benchmarks=[BenchmarkScores(b, "held_out", one) for b in ("a", "b")])
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'https?://[^\s"\')<]+', html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"<(link|script|img|iframe)\b|@import|\bsrc=", html)


def test_charts_are_the_same_bytes_each_time():
    one = score("0", Estimate(0.5, 0.4, 0.6), {1: Estimate(0.5, 0.4, 0.6)})
    benchmarks = [BenchmarkScores("b", "held_out", [one])]
    assert page(benchmarks=benchmarks) == page(benchmarks=benchmarks)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "10 items, 4 samples each at temperature 1"),
        ({"sampled_items": None}, "10 items, 4 samples each at temperature 1"),
        ({"sampled_items": 6}, "10 items, 4 samples for 6 of them at temperature 1"),
        ({"samples": None, "temperature": 0.7}, "10 items, one output each, sampled at temperature 0.7"),
        ({"samples": None, "temperature": None}, "10 items, one output each, greedy"),
    ],
)
def test_how_much_was_sampled_is_said(changes, words):
    assert how_scored(replace(score("0", None, {}), **changes)) == words


def test_what_a_benchmark_remarks_is_said_once():
    one = replace(score("0", None, {}), remark="Length control not computed: because.")
    assert page(benchmarks=[BenchmarkScores("b", "alpaca_eval", [one])]).count("not computed: because.") == 1
