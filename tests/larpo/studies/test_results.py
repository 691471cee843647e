"""From runs to results, from results to verdicts, and what the pages say of both."""

import json

import pytest

from larpo.errors import UserError
from larpo.studies import judge, load_study
from larpo.studies.findings import write_findings
from larpo.studies.page import page, write_page
from larpo.studies.results import crossing, read_run, read_value
from larpo.studies.spec import Claim, Crossing, Source
from larpo.studies.text import paragraph
from tests.larpo.studies.conftest import STUDY, changed, made, study_of

CLAIM = STUDY["claims"]["F4"][0]
HIGH, LOW, MIXED = [0.50, 0.61, 0.55, 0.58, 0.52], [0.40, 0.50, 0.46, 0.48, 0.41], [0.4, 0.7, 0.45, 0.6, 0.45]


def found(study, values, finding="F4", **facts):
    return made(study, values, **facts)["findings"][finding]


def test_a_number_of_a_run(tmp_path):
    """By keys, by the only key, by a field of a list's entry; with its error over items; the mean over policies."""
    (tmp_path / "data").mkdir()
    metrics = {
        "pass": {"8": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "points": [{"n": 1}, {"n": 8, "x": 2}],
        "bad": None,
    }
    (tmp_path / "data/m.json").write_text(json.dumps(metrics | {"one": {"any": {"x": 3}}}))
    (tmp_path / "data/other.json").write_text(json.dumps({"pass": {"8": {"value": 0.7, "low": 0.6, "high": 0.8}}}))
    read = lambda key, **more: read_value(tmp_path, Source(file="data/{policy}.json", key=key, **more), "m")  # noqa: E731
    assert read("pass/8/value") == {"value": 0.5, "error": pytest.approx(0.2 / 3.919928)}
    assert read("points/n=8/x")["value"] == 2.0 and read("one/*/x")["value"] == 3.0
    assert read("pass/8/value", policies=["m", "other"])["value"] == pytest.approx(0.6)
    wrong = (("pass/4/value", "no '4'"), ("bad", "expected a number, found None"), ("points/n=9/x", "no 'n=9'"))
    for key, words in (*wrong, ("*/x", r"no '\*'")):
        with pytest.raises(UserError, match=words):
            read(key)
    with pytest.raises(UserError, match="not readable"):
        read_value(tmp_path, Source(file="data/n.json", key="x"))


@pytest.mark.parametrize(
    ("rising", "expected"), [([0, 1, 4], 2.0), ([0, 0, 4], 2 * 2 ** (1 / 3)), ([2, 3, 4], 1.0), ([0, 0, 1], 4.0)]
)
def test_where_a_curve_overtakes_another(tmp_path, rising, expected):
    """falling is 1, 1, 2 at N = 1, 2, 4: level at 2; −1 then +2, a third of the way in log N; from the start; never."""
    values = {f"r{i}": float(v) for i, v in enumerate(rising)} | {"f0": 1.0, "f1": 1.0, "f2": 2.0}
    c = Crossing(ns=[1, 2, 4], rising=["r0", "r1", "r2"], falling=["f0", "f1", "f2"])
    assert crossing(c, values) == pytest.approx(expected)
    assert read_run(tmp_path, {}, None) == {}


def test_claims_weigh_means_and_trends():
    """Two against one: the mean of the two. A trend over 1, 2, 6 (x = −1, 0, 1): slope 2.5, rise over the range 5."""
    two = Claim(says="x", more=["a", "b"], less=["c"]).weights("m")
    assert two == [(0.5, "a", "m"), (0.5, "b", "m"), (-1.0, "c", "m")]
    trend = {cell: w for w, cell, _ in Claim(says="x", rising=["a", "b", "c"]).weights("m")}
    assert trend["a"] * 1 + trend["b"] * 2 + trend["c"] * 6 == pytest.approx(5.0)


def test_seeds_are_paired_and_a_finding_stops_at_its_first_decisive_look():
    """Seeds differ by .1, cells by about .1 in each: clear at the first look, and what comes later changes nothing."""
    study = study_of()
    early = found(study, {"one": HIGH, "two": LOW})
    assert (early["verdict"], early["claims"][0]["look"]) == ("holds", 3)
    later = found(study, {"one": [*HIGH[:3], 0.0, 0.0], "two": LOW})
    assert (later["verdict"], later["claims"][0]["look"], later["claims"][0]["difference"]["n"]) == ("holds", 3, 3)
    back = found(study, {"one": LOW, "two": HIGH})
    assert back["verdict"] == "does not hold" and back["claims"][0]["verdict"] == "worse"
    assert found(study, {"one": MIXED, "two": LOW})["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("facts", "seeds", "problem"),
    [({}, 2, "no look yet: 2 of 3 seeds"), ({"declared": "before"}, 5, "another declaration")],
)
def test_what_decides_nothing(facts, seeds, problem):
    """Fewer seeds than a look, and runs that were made before this declaration: old seeds cannot be judged by it."""
    entry = found(study_of(), {"one": HIGH[:seeds], "two": LOW[:seeds]}, **facts)
    assert entry["verdict"] == "undecided" and problem in entry["problem"]
    assert entry["claims"][0]["holds"] is None and entry["claims"][0]["difference"]["value"] > 0.09


def test_equal_is_decided_by_the_margin():
    """A difference of about .001 with margin .02: same. It refutes `better` and supports `no worse`."""
    near = [v + d for v, d in zip(LOW, (0.001, 0.002, 0.0, 0.001, 0.002), strict=True)]
    assert found(study_of(), {"one": near, "two": LOW})["verdict"] == "does not hold"
    not_worse = study_of(claims={"F4": [CLAIM | {"expects": "not_worse"}]})
    entry = found(not_worse, {"one": near, "two": LOW})
    assert (entry["verdict"], entry["claims"][0]["verdict"]) == ("holds", "same")
    assert found(not_worse, {"one": LOW, "two": LOW})["claims"][0]["verdict"] == "same", "not a single difference"


def test_by_is_taken_off_and_items_have_intervals_of_their_own():
    study = study_of(claims={"F4": [CLAIM | {"by": 0.3}]})
    assert found(study, {"one": HIGH, "two": LOW})["verdict"] == "does not hold"
    rule = STUDY["scales"]["cpu"]["rule"] | {"looks": [1], "level": 0.05, "over": "items"}
    study = study_of(scales={"cpu": {"base": "b.yaml", "rule": rule}})
    cells = {c: [{"score": {"value": v, "error": e}}] for c, v, e in (("one", 0.5, 0.01), ("two", 0.4, 0.01))}
    entry = found(study, cells)
    assert entry["verdict"] == "holds" and entry["claims"][0]["over"] == "items"
    half = 1.959964 * 0.01 * 2**0.5
    assert entry["claims"][0]["difference"]["low"] == pytest.approx(0.1 - half, abs=1e-6)
    bare = found(study, {"one": [0.5], "two": [0.4]})
    assert bare["verdict"] == "undecided", "without an error over items one run decides nothing"


def test_holm_decides_that_a_finding_does_not_hold_and_secondary_claims_wait():
    """One of several claims fails at p = .02: alone that refutes, among six it does not (6 · .02). A secondary claim
    has no say and is judged only where the finding holds."""
    cells = {c: {"label": c} for c in ("one", "two", "three")}
    lost = {"says": "lost", "more": ["three"], "less": ["one"]}
    won = {"says": "won", "more": ["one"], "less": ["two"]}
    slightly = {
        "one": HIGH,
        "two": LOW,
        "three": [v - d for v, d in zip(HIGH, (0.03, 0.05, 0.04, 0.09, 0.005), strict=True)],
    }

    def of(*claims):
        return found(study_of(cells=cells, claims={"F4": list(claims)}, figure=None), slightly)

    alone, among = of(lost), of(lost, *[won] * 5)
    assert 0.01 < alone["claims"][0]["against"] < 0.0294 and alone["verdict"] == "does not hold"
    assert among["verdict"] == "undecided" and among["claims"][0]["verdict"] == "worse"
    assert among["claims"][0]["against_holm"] == pytest.approx(6 * among["claims"][0]["against"])
    aside = of(won, lost | {"secondary": True})
    assert aside["verdict"] == "holds" and aside["claims"][1]["look"] == 3
    assert of(lost | {"more": ["two"]}, won | {"secondary": True})["claims"][1]["look"] is None


def test_a_claim_about_what_a_scale_does_not_measure_leaves_its_finding_undecided():
    other = {"label": "other", "paper": {"file": "data/x.json", "key": "y"}}
    claims = [CLAIM, {"says": "other", "more": [["one", "other"]], "less": [["two", "other"]]}]
    entry = found(
        study_of(measures=STUDY["measures"] | {"other": other}, claims={"F4": claims}), {"one": HIGH, "two": LOW}
    )
    assert entry["verdict"] == "undecided" and entry["claims"][1]["problem"] == "not measured: other"


def test_a_measure_that_is_no_share_needs_a_margin_of_its_own():
    source = {"file": "data/x.json", "key": "y", "percent": False}
    study = study_of(measures={"score": {"label": "s", "cpu": source}})
    assert "no margin" in found(study, {"one": HIGH, "two": LOW})["claims"][0]["problem"]
    study = study_of(measures={"score": {"label": "s", "cpu": source | {"margin": 0.5}}})
    assert found(study, {"one": HIGH, "two": LOW})["claims"][0]["margin"] == 0.5


def test_the_e_value_reads_all_seeds():
    entry = found(study_of(), {"one": HIGH * 2, "two": LOW * 2}, procedure="ANYTIME")
    assert entry["verdict"] == "holds" and entry["claims"][0]["look"] == 10 and "e-value" in entry["procedure"]


def test_the_papers_own_numbers_are_judged_too():
    """31.2 against 33.0: they contradict; with a standard error of 1.5 each the difference is too small to tell."""
    study = study_of()
    paper = found(study, {"one": HIGH, "two": LOW})["claims"][0]["paper"]
    assert (round(paper["difference"], 1), paper["says"], paper["clear"]) == (-1.8, "contradicts", True)
    text = paragraph(study, made(study, {"one": HIGH, "two": LOW}), "F4")
    assert "The paper's own numbers contradict it in: one above two" in text
    study = study_of(measures={"score": STUDY["measures"]["score"] | {"error": 1.5}})
    assert found(study, {"one": HIGH, "two": LOW})["claims"][0]["paper"]["clear"] is False


def test_page_and_findings_say_what_the_numbers_say(folder):
    study = load_study(folder, "small")
    results = made(study, {"one": HIGH[:3], "two": LOW[:3]})
    html = page(study, results)
    assert "A &lt;b&gt;small&lt;/b&gt; study" in html and "<svg" in html and "F4: holds" in html
    assert "50.0" in html and "61.0" in html, "every seed is shown"
    assert write_page(study, results, folder.parent).read_text("utf-8") == html
    kept = json.loads((folder / "results/small-cpu.json").read_text("utf-8"))
    assert kept == json.loads(json.dumps(results)) and judge(study, kept) == kept["findings"]
    text = write_findings(folder.parent).read_text("utf-8")
    # Mean .553333, s/√3 = .031798, t(0.975, 2) = 4.302653: half .136816.
    assert "| one | 55.3 [41.7, 69.0] | 31.2 |" in text
    assert "[small](#small-cpu) | cpu | 3 | **holds** |" in text
    for words in ("better (3 seeds, p =", "looks declared at 3 and 5 seeds, each at level 0.0294", "All seeds start"):
        assert words in text and words in html.replace("&#39;", "'"), words


def test_results_of_the_former_design_carry_no_verdict(folder):
    claim = {"says": "one above two", "verdict": "holds", "percent": True}
    claim |= {"difference": {"value": 0.1, "low": 0.05, "high": 0.15}}
    cell = {"label": "one", "reported": {}, "measures": {"score": {"value": 0.5, "low": None, "high": None}}}
    former = {"study": "small", "scale": "cpu", "seeds": 2, "run_seconds": 7, "cells": {"one": cell}}
    former |= {"measures": {"score": {"label": "score", "percent": True}}}
    former |= {"findings": {"F4": {"verdict": "holds", "claims": [claim]}}}
    (folder / "results").mkdir()
    (folder / "results/small-cpu.json").write_text(json.dumps(former))
    (folder / "results/gone-cpu.json").write_text(json.dumps(former | {"study": "gone"}))
    text = write_findings(folder.parent).read_text("utf-8")
    assert "former design" in text and "one above two: difference 10.0 [5.0, 15.0]" in text
    assert "**holds**" not in text and "| none yet | | | not judged |" in text and "gone" not in text


def test_a_cell_keeps_the_order_of_its_study(folder):
    cells = {"z": STUDY["cells"]["one"], **STUDY["cells"]}
    study = changed(folder, cells=cells)
    write_page(study, made(study, dict.fromkeys(["two", "one", "z"], HIGH)), folder.parent)
    assert list(json.loads((folder / "results/small-cpu.json").read_text("utf-8"))["cells"]) == ["z", "one", "two"]
