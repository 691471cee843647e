"""What a study's file expands to, and what is refused."""

import pytest

from larpo.errors import UserError
from larpo.studies import expand, load_study
from larpo.studies.expand import names, unfold
from tests.conftest import ROOT
from tests.larpo.studies.conftest import RULE, STUDY, changed


def test_a_study_is_its_cells_with_every_seed(folder):
    assert names(folder) == ["small"], "a base is no study"
    runs = expand(load_study(folder, "small"), folder, "cpu", 2)
    assert [(r.cell, r.seed) for r in runs] == [("one", 100), ("one", 101), ("two", 100), ("two", 101)]
    one, two = runs[0].params, runs[3].params
    assert (one["train"]["objective"], two["train"]["objective"]) == ("listmle", "lambdarank")
    assert (one["lists"]["top"], two["lists"]["top"]) == (2, 1), "cells do not share their settings"
    assert two["seed"] == 101 and one["evaluate"]["policies"] == ["2"]
    assert len({r.name for r in runs}) == 4
    assert len(expand(load_study(folder, "small"), folder, "cpu")) == 2 * RULE["looks"][-1]


def test_seeded_keys_take_the_seed_and_cells_of_another_scale_are_left_out(folder):
    scale = STUDY["scales"]["cpu"] | {"seeded": ["train.trainer_options.data_seed"]}
    cells = STUDY["cells"] | {"far": {"label": "far", "only": "paper"}}
    runs = expand(changed(folder, scales={"cpu": scale}, cells=cells), folder, "cpu", 2)
    assert [r.params["train"]["trainer_options"]["data_seed"] for r in runs] == [100, 101, 100, 101]
    assert {r.cell for r in runs} == {"one", "two"}


def test_each_stands_for_its_combinations():
    tree = {
        "p{n}_t{t}": {"each": {"t": [0.3, 1], "n": [1, 2]}, "key": "a/{t}/{n}", "n": "{n}", "file": "{policy}-x"},
        "other": {"list": [{"each": {"n": [4]}, "point": ["{n}", "p{n}_t{t_}"]}, {"each": {"t": [0.3]}, "m": "t{t_}"}]},
    }
    found = unfold(tree)
    assert list(found) == ["p1_t03", "p2_t03", "p1_t1", "p2_t1", "other"]
    assert found["p2_t03"] == {"key": "a/0.3/2", "n": 2, "file": "{policy}-x"}
    assert found["other"]["list"] == [[4, "p4_t{t_}"], {"m": "t03"}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cells": {"one": {"label": "x", "set": {"train.objectiv": 1}}}, "claims": {}, "figure": None}, "objectiv"),
        ({"claims": {"F4": [{"says": "x", "more": ["on"], "less": ["two"]}]}}, "did you mean 'one'"),
        ({"claims": {"F4": [{"says": "x", "more": [["one", "scor"]], "less": ["two"]}]}}, "did you mean 'score'"),
        ({"claims": {"F4": [{"says": "x", "rising": ["one", "two"]}]}}, "a trend needs three cells, found 2"),
        ({"claims": {"F4": [{"says": "x"}]}}, "expected more and less, or rising"),
        ({"claims": {"F0": []}}, "F0"),
        ({"cells": STUDY["cells"] | {"one": {"label": "x", "only": "paper"}}}, "scale 'cpu' has no cell 'one'"),
        ({"scales": {"cpu": {"base": "base.yaml"}}}, "scales.cpu.rule: Field required"),
        ({"scales": {"cpu": {"base": "base.yaml", "rule": RULE | {"looks": [5, 3]}}}}, "expected rising numbers"),
        ({"scales": {"cpu": {"base": "base.yaml", "rule": RULE | {"primary": "scor"}}}}, "did you mean 'score'"),
        ({"measures": {"score": {"label": "s", "cpu": {"file": "data/x.json"}}}}, "expected file and key, or crossing"),
        ({"name": "smal"}, "expected 'small'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        expand(changed(folder, **changes), folder, "cpu")
    assert "\n" not in str(caught.value) and "small" in str(caught.value)


def test_unknown_study_scale_number_of_seeds_and_a_key_twice(folder):
    with pytest.raises(UserError, match="did you mean 'small'"):
        load_study(folder, "smal")
    study = load_study(folder, "small")
    with pytest.raises(UserError, match="no scale 'paper'"):
        expand(study, folder, "paper")
    with pytest.raises(UserError, match="expected 1 or more, found 0"):
        expand(study, folder, "cpu", 0)
    path = folder / "small.yaml"
    path.write_text(path.read_text() + "about: again\n")
    with pytest.raises(UserError, match='found duplicate key "about"'):
        load_study(folder, "small")


@pytest.mark.parametrize("name", names(ROOT / "studies"))
def test_every_study_of_the_project_expands(name):
    study = load_study(ROOT / "studies", name)
    for scale, chosen in study.scales.items():
        assert chosen.rule.first_seed >= 100 or scale == "paper", "settings were chosen on seeds 0 to 2"
        runs = expand(study, ROOT / "studies", scale, 1)
        assert len(runs) == len(study.cells_at(scale))


def test_the_declaration_is_what_decides_and_no_words():
    from tests.larpo.studies.conftest import study_of

    claim = STUDY["claims"]["F4"][0]
    base = study_of().declaration("cpu")
    assert study_of(title="other", claims={"F4": [claim | {"says": "other"}]}).declaration("cpu") == base
    others = [
        study_of(claims={"F4": [claim | {"expects": "not_worse"}]}),
        study_of(claims={"F4": [claim, claim]}),
        study_of(scales={"cpu": {"base": "base.yaml", "rule": RULE | {"margin": 0.01}}}),
        study_of(cells=STUDY["cells"] | {"three": {"label": "three"}}),
    ]
    assert len({base, *(other.declaration("cpu") for other in others)}) == 5
