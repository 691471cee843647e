"""A small study, and made-up results of it."""

from typing import Any

import pytest
import yaml

from larpo.studies import Study, judge, load_study, results_of
from tests.conftest import TINY_PARAMS

RULE = {"primary": "score", "first_seed": 100, "looks": [3, 5], "level": 0.0294, "margin": 0.02}
STUDY: dict[str, Any] = {
    "name": "small",
    "title": "A <b>small</b> study",
    "paper": "Table 3",
    "about": "Two cells.",
    "scales": {"cpu": {"base": "base.yaml", "rule": RULE, "set": {"evaluate.policies": ["2"]}}},
    "cells": {
        "one": {"label": "one", "set": {"train.objective": "listmle"}, "reported": {"score": 31.2}},
        "two": {"label": "two", "cpu": {"lists.top": 1, "lists.bottom": 1}, "reported": {"score": 33.0}},
    },
    "measures": {
        "score": {"label": "score", "cpu": {"file": "data/evaluate/2-held_out.json", "key": "greedy/accuracy"}}
    },
    "claims": {"F4": [{"says": "one above two", "more": ["one"], "less": ["two"]}]},
    "figure": {"x": "x", "y": "y", "lines": [{"label": "l", "points": [[1, "one", "score"], [2, "two", "score"]]}]},
}


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "studies"
    home.mkdir()
    (home / "base.yaml").write_text(TINY_PARAMS.format(policy=tmp_path))
    changed(home)
    return home


def changed(folder, **changes) -> Study:
    """The small study with other sections, written and read again."""
    (folder / "small.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return load_study(folder, "small")


def study_of(**changes) -> Study:
    return Study.model_validate(STUDY | changes)


def made(study: Study, values: dict[str, list[Any]], procedure: str = "LOOKS", **facts) -> dict[str, Any]:
    """Results with their findings. `values`: cell → an entry per seed, a value of every measure or {measure: value}."""
    records = [
        {"cell": cell, "seed": 100 + i, "seconds": 1, "git": {"commit": "0" * 40, "dirty": False}}
        | {"declared": study.declaration("cpu"), "values": _readings(study, value)}
        | facts
        for cell, found in values.items()
        for i, value in enumerate(found)
    ]
    results = results_of(study, "cpu", records, procedure)
    return results | {"findings": judge(study, results)}


def _readings(study: Study, value: Any) -> dict[str, dict[str, float]]:
    each = value if isinstance(value, dict) else dict.fromkeys(study.sources("cpu"), value)
    return {measure: v if isinstance(v, dict) else {"value": v} for measure, v in each.items()}
