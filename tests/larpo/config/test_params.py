"""params.yaml: every wrong key or value is one line that names it."""

import copy

import pytest
import yaml

from larpo.config.params import parse_params
from larpo.errors import UserError
from larpo.load import check_params, load_params
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


HEAD = {"data": {"source": "sums"}, "held_out": 0.3, "learning_rate": 1e-3}
START = {"start": "data/policy/0", "train": HEAD}


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"start": "policy/0"}, "reward.start: expected larpo/rewards/rules.py, or data/policy/NAME"),
        ({"start": "data/policy/0/config.json"}, "reward.start: expected larpo/rewards/rules.py"),
        (START | {"train": None}, "expected reward.train and no reward.model, found model=None, train=null"),
        (START | {"model": "a/b"}, "expected reward.train and no reward.model, found model='a/b', train=given"),
        (START | {"start": "data/policy/1"}, "reward.start: policy 1 is trained with this reward"),
        (START | {"start": "data/policy/bas"}, "reward.start: policy 'bas' does not exist; did you mean 'base'?"),
        (START | {"kind": "pairrm"}, "reward.train: trains a sequence_classification model"),
        (START | {"train": HEAD | {"held_out": 0.1}}, "reward.train.held_out: expected that of prompts, 0.3"),
        ({"start": "larpo/rewards/rules.py", "train": HEAD}, "expected reward.model or reward.start"),
    ],
)
def test_what_a_reward_may_start_from(reward, words):
    raw = changed("reward", reward)
    data = GOOD["prompts"] | {"held_out": 0.3}
    raw["prompts"], sums = data, {"source": "sums", "held_out": 0.3}
    raw["sft"] = {"base": {"previous": "0", "data": sums, "examples": 9, "learning_rate": 1e-3}}
    for start in ("data/policy/0", "data/policy/base"):
        raw["reward"] = START | {"start": start}
        assert parse_params(raw).reward.source == start
    raw["reward"] = reward
    with pytest.raises(UserError) as caught:
        check_params(parse_params(raw))
    assert words in str(caught.value) and "\n" not in str(caught.value)
