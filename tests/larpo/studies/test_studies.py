"""Studies: what a file expands to, the statistics over seeds, the verdicts, the page."""

import json
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.errors import UserError
from larpo.studies.page import write_findings, write_page
from larpo.studies.results import Interval, combine, judge, read_value, summarise, t_interval, verdict
from larpo.studies.spec import Claim, Source, expand, load_study, names
from tests.conftest import ROOT, TINY_PARAMS

STUDY = {
    "name": "small",
    "title": "A <b>small</b> study",
    "paper": "Table 3",
    "about": "Two cells.",
    "seeds": 2,
    "scales": {"cpu": {"base": "base.yaml", "set": {"evaluate.policies": ["2"]}}},
    "cells": {
        "one": {"label": "one", "set": {"train.objective": "listmle"}, "reported": {"score": 31.2}},
        "two": {"label": "two", "cpu": {"lists.top": 1, "lists.bottom": 1}},
    },
    "measures": {
        "score": {"label": "score", "cpu": {"file": "data/evaluate/2-held_out.json", "key": "greedy/accuracy"}}
    },
    "claims": {"F4": [{"says": "one above two", "more": [["one", "score"]], "less": [["two", "score"]]}]},
    "figure": {"x": "x", "y": "y", "lines": [{"label": "l", "points": [[1, "one", "score"], [2, "two", "score"]]}]},
}


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "studies"
    home.mkdir()
    (home / "base.yaml").write_text(TINY_PARAMS.format(policy=tmp_path))
    (home / "small.yaml").write_text(yaml.safe_dump(STUDY))
    return home


def written(folder) -> tuple[dict, str]:
    """The summary of made-up results, and the page that is written of it."""
    study = load_study(folder, "small")
    values = {cell: {"score": [0.2, 0.3] if cell == "two" else [0.5, 0.6]} for cell in study.cells}
    summary = summarise(study, "cpu", 2, values, {"run_seconds": 7})
    return summary, write_page(study, summary, folder.parent).read_text("utf-8")


def changed(folder, **changes) -> None:
    (folder / "small.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))


def test_a_study_is_its_cells_with_every_seed(folder):
    assert names(folder) == ["small"], "a base is no study"
    runs = expand(load_study(folder, "small"), folder, "cpu")
    assert [(r.cell, r.seed) for r in runs] == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    one, two = runs[0].params, runs[3].params
    assert (one["train"]["objective"], two["train"]["objective"]) == ("listmle", "lambdarank")
    assert (one["lists"]["top"], two["lists"]["top"]) == (2, 1), "cells do not share their settings"
    assert two["seed"] == 1 and one["evaluate"]["policies"] == ["2"]
    assert len({r.name for r in runs}) == 4
    assert len(expand(load_study(folder, "small"), folder, "cpu", 5)) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cells": {"one": {"label": "x", "set": {"train.objectiv": 1}}}, "claims": {}, "figure": None}, "objectiv"),
        ({"claims": {"F4": [{"says": "x", "more": [["on", "score"]], "less": []}]}}, "did you mean 'one'"),
        ({"claims": {"F4": [{"says": "x", "more": [["one", "scor"]]}]}}, "did you mean 'score'"),
        ({"claims": {"F4": [{"says": "x", "peak": ["one", "two"], "measure": "score"}]}}, "three cells"),
        ({"claims": {"F4": [{"says": "x"}]}}, "expected more and less, or peak"),
        ({"claims": {"F0": []}}, "F0"),
        ({"name": "smal"}, "expected 'small'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, changes, words):
    changed(folder, **changes)
    with pytest.raises(UserError, match=words) as caught:
        expand(load_study(folder, "small"), folder, "cpu")
    assert "\n" not in str(caught.value) and "small" in str(caught.value)


def test_a_key_that_stands_twice_is_refused(folder):
    path = folder / "small.yaml"
    path.write_text(path.read_text() + "about: again\n")
    with pytest.raises(UserError, match='found duplicate key "about"'):
        load_study(folder, "small")


def test_unknown_study_scale_and_number_of_seeds(folder):
    with pytest.raises(UserError, match="did you mean 'small'"):
        load_study(folder, "smal")
    study = load_study(folder, "small")
    with pytest.raises(UserError, match="no scale 'paper'"):
        expand(study, folder, "paper")
    with pytest.raises(UserError, match="expected 1 or more, found 0"):
        expand(study, folder, "cpu", 0)


def test_t_interval_by_hand():
    """1, 2, 6: mean 3, s² = (4 + 1 + 9)/2 = 7, s/√3 = √(7/3) = 1.527525; t(0.975, 2) = 4.302653, half 6.572410."""
    found = t_interval([1.0, 2.0, 6.0])
    assert (found.value, found.n) == (3.0, 3)
    assert found.low == pytest.approx(3 - 6.572410, abs=1e-5) and found.high == pytest.approx(3 + 6.572410, abs=1e-5)
    assert t_interval([4.0]) == Interval(4.0, None, None, 1)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-100, 100))
@settings(max_examples=50, deadline=None)
def test_interval_moves_with_its_values_and_mirrors(values, shift):
    found, moved = t_interval(values), t_interval([v + shift for v in values])
    assert found.low <= found.value <= found.high
    assert math.isclose(moved.high - moved.low, found.high - found.low, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(t_interval([-v for v in values]).high, -found.low, rel_tol=1e-9, abs_tol=1e-9)


def test_verdicts():
    assert verdict(Interval(2, 1, 3, 3)) == "holds"
    assert verdict(Interval(-2, -3, -1, 3)) == "does not hold"
    assert verdict(Interval(0, 0, 0, 3)) == "does not hold", "nothing differs"
    assert verdict(Interval(1, -1, 3, 3)) == verdict(Interval(5, None, None, 1)) == "undecided"
    assert combine(["holds", "holds"]) == "holds"
    assert combine(["holds", "undecided"]) == combine([]) == "undecided"
    assert combine(["holds", "undecided", "does not hold"]) == "does not hold"


def test_a_claim_is_judged_seed_by_seed():
    """Seeds differ by 10, cells by 1 in each: the paired differences are 1, 1, 1.1 (mean 1.0333), clearly above 0."""
    values = {"one": {"m": [1.0, 11.0, 21.1]}, "two": {"m": [0.0, 10.0, 20.0]}}
    found = judge(Claim(says="x", more=[("one", "m")], less=[("two", "m")]), values)
    assert found.verdict == "holds" and found.difference.value == pytest.approx(3.1 / 3)
    back = judge(Claim(says="x", more=[("two", "m")], less=[("one", "m")]), values)
    assert back.verdict == "does not hold"


def test_a_peak_is_the_best_inner_cell_against_the_better_end():
    values = {c: {"m": [v, v + 0.1, v + 0.2]} for c, v in {"a": 1, "b": 5, "c": 3, "d": 2}.items()}
    values["b"]["m"][0] += 0.01
    found = judge(Claim(says="x", peak=["a", "b", "c", "d"], measure="m"), values)
    assert "best b, better end d" in found.says and found.verdict == "holds"
    assert found.difference.value == pytest.approx(3 + 0.01 / 3)


def test_a_measure_that_is_not_there_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/m.json").write_text(json.dumps({"pass": {"8": {"value": 0.5}}, "list": [{"x": 2}], "bad": None}))
    assert read_value(tmp_path, Source(file="data/m.json", key="pass/8/value")) == 0.5
    assert read_value(tmp_path, Source(file="data/m.json", key="list/0/x")) == 2.0
    for key, words in (("pass/4/value", "no '4'"), ("bad", "expected a number, found None"), ("list/9/x", "no '9'")):
        with pytest.raises(UserError, match=words):
            read_value(tmp_path, Source(file="data/m.json", key=key))
    with pytest.raises(UserError, match="not readable"):
        read_value(tmp_path, Source(file="data/n.json", key="x"))


def test_page_and_findings_say_what_the_numbers_say(folder):
    summary, page = written(folder)
    assert summary["findings"]["F4"]["verdict"] == "holds"
    assert "A &lt;b&gt;small&lt;/b&gt; study" in page and "<svg" in page and "F4: holds" in page
    assert "50.0" in page and "60.0" in page, "every seed is shown"
    kept = json.loads((folder / "results/small-cpu.json").read_text("utf-8"))
    assert kept["cells"]["one"]["measures"]["score"]["values"] == [0.5, 0.6]
    text = write_findings(folder.parent).read_text("utf-8")
    # t(0.975, 1) = 12.7062; s/√2 of 0.5, 0.6 is 0.05: 55 ± 63.5 percent.
    assert "| one | 55.0 [-8.5, 118.5] | 31.2 |" in text
    assert (
        "| F4: Listwise objectives are at least as good as both | [small](#small-cpu) | cpu | 2 | **holds** |" in text
    )


@pytest.mark.parametrize("name", names(ROOT / "studies"))
def test_every_study_of_the_project_expands(name):
    study = load_study(ROOT / "studies", name)
    for scale in study.scales:
        runs = expand(study, ROOT / "studies", scale)
        assert len(runs) == study.seeds * len(study.cells) and study.seeds >= 3


def test_a_claim_about_what_a_scale_does_not_measure_leaves_its_finding_undecided(folder):
    """Of two claims one holds, the other is about a measure of another scale."""
    other = {"label": "other", "paper": {"file": "data/x.json", "key": "y"}}
    claims = [*STUDY["claims"]["F4"], {"says": "other", "more": [["one", "other"]], "less": [["two", "other"]]}]
    changed(folder, measures=STUDY["measures"] | {"other": other}, claims={"F4": claims})
    summary, page = written(folder)
    assert [c["verdict"] for c in summary["findings"]["F4"]["claims"]] == ["holds", "not measured"]
    assert summary["findings"]["F4"]["verdict"] == "undecided" and "not measured" in page


def test_results_of_a_study_that_is_gone_are_left_out(folder):
    written(folder)
    kept = (folder / "results/small-cpu.json").read_text()
    (folder / "results/gone-cpu.json").write_text(kept.replace("small", "old"))
    assert "gone" not in write_findings(folder.parent).read_text("utf-8")


def test_a_cell_keeps_the_order_of_its_study(folder):
    cells = {"z": STUDY["cells"]["one"], **STUDY["cells"]}
    changed(folder, cells=cells)
    written(folder)
    assert list(json.loads((folder / "results/small-cpu.json").read_text())["cells"]) == ["z", "one", "two"]
