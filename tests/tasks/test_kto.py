"""KTO end to end on the tiny policy: mismatched responses from the node `reference` to the node `train`."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import tasks.candidates
import tasks.lists
import tasks.policy
import tasks.prompts
import tasks.reference
import tasks.reward
import tasks.sample
import tasks.score
import tasks.train
from larpo import tables
from larpo.errors import UserError
from larpo.lists.read import mismatched_responses, read_lists
from larpo.models.load import load_model
from larpo.training.packing import ResponseList
from tests.tasks.conftest import change


@pytest.fixture
def kto(workspace):
    """Pairs, and a mismatched response per list."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    change(
        lists={"recipe": "best_worst", "truncated": "keep"},
        train=raw["train"] | {"objective": "kto"},
        reference=raw["reference"] | {"mismatched": True},
    )


def test_kto_trains(kto):
    tasks.policy.main()
    tasks.reward.main()
    for node in (tasks.prompts, tasks.sample, tasks.score, tasks.candidates, tasks.lists, tasks.reference):
        node.main("1")
    frame = read_lists("data/lists/1.parquet", "data/candidates/1.parquet")
    reference = tables.read("reference", "data/reference/1.parquet")
    assert len(frame) == len(reference) >= 6  # three lists or more, or the rest says little
    assert reference["mismatched_logp"].notna().tolist() == (frame["rank"] == 0).tolist()

    # One prompt, one foreign response at a time: the best of the next list, the first list's for the last.
    firsts = frame[frame["rank"] == 0].reset_index(drop=True)
    model = load_model("data/policy/0", "float32").eval()
    given = reference["mismatched_logp"].dropna().tolist()
    for i, value in enumerate(given):
        prompt = firsts["prompt_token_ids"][i].tolist()
        other = firsts["token_ids"][(i + 1) % len(firsts)].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + other])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(other)[:, None]).sum().item()
        assert value == pytest.approx(expected, abs=1e-3)

    tasks.train.main("1")
    notes = json.loads(Path("data/train/1.manifest.json").read_text())["notes"]
    assert notes["step0_expected"] == 1.0  # (λ_D + λ_U) / 2
    assert notes["step0_loss"] == pytest.approx(1.0, abs=1e-4)
    losses = pd.read_csv("data/train/1/plots/metrics/loss.tsv", sep="\t")
    assert len(losses) == notes["steps"] and losses["loss"].between(0, 2, inclusive="neither").all()
    trained = load_model("data/policy/1", "float32")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))

    # A reference table with a hole is refused, not trained on.
    shutil.rmtree("data/policy/1")
    reference.loc[reference["mismatched_logp"].last_valid_index(), "mismatched_logp"] = None
    tables.write(reference, "reference", "data/reference/1.parquet")
    with pytest.raises(UserError, match=r"data/reference/1.parquet: response .* has no mismatched_logp"):
        tasks.train.main("1")
    assert not Path("data/policy/1").exists()


def test_kto_without_mismatched_is_refused_before_anything_runs(kto):
    change(reference={"mismatched": False})
    with pytest.raises(UserError, match=r"params.yaml: train.objective: kto .*`reference.mismatched: true`"):
        tasks.policy.main()
    assert not Path("scratch").exists()


def test_a_next_list_of_the_same_prompt_is_passed_over():
    """Prompts A, A, B, A: every A gets B's best, B gets the A behind it. All of one prompt: refused."""
    lists = [
        ResponseList([5], [[1], [2]]),
        ResponseList([5], [[3], [4]]),
        ResponseList([6], [[7], [8]]),
        ResponseList([5], [[9], [10]]),
    ]
    assert mismatched_responses(lists, "f") == [[7], [7], [9], [7]]
    with pytest.raises(UserError, match=r"f: .* at least two prompts, found 2 of one"):
        mismatched_responses(lists[:2], "f")
