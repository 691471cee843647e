"""params.yaml: every wrong key or value is one line that names it."""

from __future__ import annotations

import copy

import yaml

from larpo.params import load_params, parse_params
from tests.conftest import ROOT, TINY_PARAMS

GOOD = yaml.safe_load(TINY_PARAMS.format(policy="here"))


def changed(dotted: str, value: object) -> dict:
    """GOOD with one key set."""
    raw = copy.deepcopy(GOOD)
    *path, last = dotted.split(".")
    place = raw
    for key in path:
        place = place[key]
    place[last] = value
    return raw


def test_the_projects_own_file_is_right_and_says_what_dvc_unrolls():
    params = load_params(ROOT / "params.yaml")
    assert set(params.evaluate.policies) == {"0", *params.iterations}


def test_memory_windows_follow_the_chain_of_policies():
    """Iterations 1 → 2 → 4 and a branch 1 → 3: branch 3's memory is 1 and 3, never 2."""
    raw = copy.deepcopy(GOOD)
    for s, previous in (("3", "1"), ("4", "2")):
        raw["iterations"][s] = {"previous": previous, "temperatures": [1.0]}
    windows = {}
    for memory in ("current", "previous", "all"):
        raw["lists"]["memory"] = memory
        params = parse_params(raw)
        windows[memory] = [params.memory_window(s) for s in ("3", "4")]
    assert windows == {
        "current": [["3"], ["4"]],
        "previous": [["1", "3"], ["2", "4"]],
        "all": [["1", "3"], ["1", "2", "4"]],
    }
