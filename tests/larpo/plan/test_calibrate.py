"""A plan's assumptions measured on this machine, by the tiny run's own policy, prompts and lists."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli import app
from larpo import tables
from larpo.errors import UserError
from larpo.load import load_params
from larpo.plan import Assumptions
from larpo.plan.calibrate import calibrated


def test_rates_and_lengths_of_this_machine(finished_project, monkeypatch):
    """Rates are what a processor can have, lengths those of the run's own tables; the plan's arithmetic uses them."""
    monkeypatch.chdir(finished_project.folder)
    a = calibrated(load_params(), Assumptions())
    assert 1e8 < a.fp32_flops < 1e16 and 1e8 < a.memory_bytes_per_s < 1e14 and a.gpu_memory_gib > 0.5
    for name in ("train_utilisation", "forward_utilisation", "decode_utilisation_transformers"):
        assert 0 < getattr(a, name) < 2, name
    sampled = tables.read("responses", "data/sample/1.parquet")
    lengths = sampled["prompt_token_ids"].map(len)
    assert lengths.min() <= a.prompt_tokens <= a.longest_prompt_tokens
    assert a.response_tokens == pytest.approx(sampled["token_ids"].map(len).mean(), rel=0.3)
    done = CliRunner().invoke(app, ["plan", "--calibrate", "--json", "--assume", "train_utilisation=0.123"])
    tree = json.loads(done.stdout)
    train = next(node for node in tree["nodes"] if node["name"] == "train@1")
    assert "· 0.123)" in train["hours"]["formula"] and train["memory"]["process"]["value"] > 0
    assert tree["assumptions"]["fp32_flops"] != Assumptions().fp32_flops


def test_without_a_policy_there_is_nothing_to_measure(tmp_path, monkeypatch, finished_project):
    params = load_params(finished_project.folder / "params.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^larpo plan --calibrate: data/policy/0: not found.*dvc repro policy"):
        calibrated(params, Assumptions())
