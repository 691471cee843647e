"""params.yaml: every wrong key or value is one line that names it."""

from __future__ import annotations

import copy

import pytest
import yaml

from larpo.errors import UserError
from larpo.params import check_names, load_params, parse_params
from tests.conftest import ROOT, TINY_PARAMS

GOOD = yaml.safe_load(TINY_PARAMS.format(policy="here"))


def changed(dotted: str, value: object) -> dict:
    raw = copy.deepcopy(GOOD)
    *path, last = dotted.split(".")
    place = raw
    for key in path:
        place = place[key]
    place[last] = value
    return raw


def refusal(raw: object) -> str:
    with pytest.raises(UserError) as caught:
        check_names(parse_params(raw))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_projects_own_file_is_right_and_says_what_dvc_unrolls():
    params = load_params(ROOT / "params.yaml")
    assert set(params.evaluate.policies) == {"0", *params.iterations}


@pytest.mark.parametrize(
    ("dotted", "value", "words"),
    [
        ("train.objectiv", "x", ["train.objectiv does not exist", "did you mean 'objective'"]),
        ("train.objective", "lamdarank", ["train.objective", "'lamdarank'", "lambdarank"]),
        ("train.objective_options", {"bta": 1}, ["train.objective", "bta"]),
        ("train.learning_rate", "fast", ["train.learning_rate", "number", "'fast'"]),
        ("train.learning_rate", float("nan"), ["train.learning_rate", "finite"]),
        ("engine.name", "vlm", ["engine.name", "did you mean 'vllm'"]),
        ("score.reward", "final_numbr", ["score.reward", "did you mean 'final_number'"]),
        ("lists.recipe", "top_botom", ["lists.recipe", "did you mean 'top_bottom'"]),
        ("prompts.source", "gym", ["prompts.source"]),
        ("benchmarks.held_out.benchmark", "heldout", ["benchmarks.held_out.benchmark", "did you mean 'held_out'"]),
        ("benchmarks.held_out.generate.sampled_items", 9, ["sampled_items", "9 of 8"]),
        ("sample.responses", 1, ["sample.responses", "greater than or equal to 2", "1"]),
        ("lists.top", 6, ["lists.recipe", "needs 8", "sample.responses is 6"]),
        ("iterations.1.temperatures", [0.0], ["iterations.1.temperatures", "temperature 0"]),
        ("iterations.2.temperatures", [0.5, 0.6, 0.7, 0.8], ["iterations.2.temperatures", "equally"]),
        ("iterations.1.previous", "2", ["iterations.1.previous", "earlier iteration"]),
        ("iterations.2.previous", "7", ["iterations.2.previous"]),
        (
            "reward",
            {"model": "x/y", "train": {"data": {"data": "p.jsonl"}, "learning_rate": 1e-4, "launch": "f.yaml"}},
            ["reward.train.launch", "one process"],
        ),
        ("iterations.0", {"previous": "0", "temperatures": [1.0]}, ["iterations.0"]),
        ("evaluate.policies", ["0", "0"], ["evaluate.policies", "twice"]),
        ("evaluate.policies", ["4"], ["evaluate.policies", "'4'"]),
        ("prompts.held_out", 0, ["prompts.held_out", "0 leaves no prompts"]),
        ("seed", -1, ["seed"]),
    ],
)
def test_wrong_values_name_themselves(dotted, value, words):
    message = refusal(changed(dotted, value))
    assert message.startswith("params.yaml: ")
    for word in words:
        assert word in message


def test_a_missing_section_is_named():
    raw = copy.deepcopy(GOOD)
    del raw["train"]
    assert "train" in refusal(raw)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "not valid YAML"),
        ("seed: 0\nseed: 1\n", "'seed' stands twice"),
        ("- 1\n", "expected a mapping"),
    ],
)
def test_files_that_are_no_params(tmp_path, text, words):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_params(path)


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
        ({"start": "policy/0"}, "reward: value error, start: expected larpo/rewards/rules.py, or data/policy/NAME"),
        ({"start": "data/policy/0/config.json"}, "reward: value error, start: expected larpo/rewards/rules.py"),
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
    assert words in refusal(raw)
