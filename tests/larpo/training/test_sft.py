"""Supervised fine-tuning and policies from random weights."""

import pytest
import torch

from larpo.config.params import parse_params, policy_key
from larpo.config.policy import PolicyParams, ScratchParams
from larpo.errors import UserError
from larpo.load import check_params
from larpo.models.blank import scratch_policy
from larpo.models.initial import fetch_initial_policy
from larpo.training.logps import response_logps
from larpo.training.micro_batches import Budget, Examples
from larpo.training.packing import ResponseList, pack
from larpo.training.sft_trainer import IGNORED, Collator, Example, SFTTrainer
from tests.larpo.config.test_params import changed
from tests.larpo.training.kit import arguments, assert_same_weights, curve

SMALL = ScratchParams(characters="0123456789+ ", hidden_size=16, layers=1, heads=2, max_length=32)
EXAMPLES = [Example([3, 7, 8], [9, 2]), Example([3, 7], [10, 11, 12, 2]), Example([3], [6, 2])]


def test_a_batch_is_padded_on_the_right_and_learns_responses_only():
    batch = Collator(pad=0)(EXAMPLES[:2])
    assert batch["input_ids"].tolist() == [[3, 7, 8, 9, 2, 0], [3, 7, 10, 11, 12, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [9, 2, IGNORED], [IGNORED] * 2 + [10, 11, 12, 2]]


def fit(tmp_path, device_batch: int, accumulation: int, steps: int = 2, **options):
    model, _ = scratch_policy(SMALL)
    batch = {"per_device_train_batch_size": device_batch, "gradient_accumulation_steps": accumulation}
    trainer = SFTTrainer(model, arguments(tmp_path, max_steps=steps, **batch), EXAMPLES, pad=0, **options)
    trainer.train()
    return model, curve(trainer, "loss")


def test_the_loss_is_the_mean_over_all_response_tokens(tmp_path):
    """Eight response tokens in three examples: −Σ log π / 8, with log π from the independent packed forward pass."""
    model, _ = scratch_policy(SMALL)
    packed = pack([ResponseList(e.prompt_ids, [e.response_ids]) for e in EXAMPLES])
    with torch.no_grad():
        expected = -response_logps(model.eval(), packed)[0].sum().item() / 8
    _, losses = fit(tmp_path, 3, 1, steps=1)
    assert losses[0] == pytest.approx(expected, abs=1e-4)


def test_accumulation_is_the_large_batch(tmp_path):
    """Examples of 2, 4 and 2 response tokens: a mean of micro-batch means would weigh them wrongly."""
    whole, _ = fit(tmp_path / "a", 3, 1)
    parts, _ = fit(tmp_path / "b", 1, 3)
    assert_same_weights(whole, parts, atol=2e-5, rtol=1e-4)
    for tokens in (1, 12, 1000):  # also by tokens
        parts, _ = fit(tmp_path / "c", 1, 1, budget=Budget(3, tokens))
        assert_same_weights(whole, parts, atol=2e-5, rtol=1e-4)


def test_what_fills_up_the_last_batch_of_several_processes_does_not_count(tmp_path):
    """Index -1 (`larpo.training.micro_batches.PaddedOrder`): loss and gradient are those of the batch without it."""
    dataset, model = Examples(EXAMPLES), scratch_policy(SMALL)[0]
    trainer, results = SFTTrainer(model, arguments(tmp_path), EXAMPLES, pad=0), []
    for indices in ([0, 1, 2], [0, 1, 2, -1]):
        batch = Collator(pad=0)([dataset[i] for i in indices])
        assert trainer._get_num_items_in_batch([batch], torch.device("cpu")) == 8
        model.zero_grad()
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(8))
        loss.backward()
        results.append((loss, torch.cat([p.grad.flatten() for p in model.parameters()])))
    torch.testing.assert_close(*results)


def test_random_weights_are_those_of_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, tokenizer = scratch_policy(SMALL)
    assert torch.equal(before, torch.get_rng_state())
    again, _ = scratch_policy(SMALL)
    other, _ = scratch_policy(SMALL.model_copy(update={"seed": 1}))
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    ids = tokenizer("12 + 3x<eos>", add_special_tokens=False)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and ids[-2] == tokenizer.unk_token_id and len(ids) == 8
    assert tokenizer.decode(ids[:-2]) == "12 + 3"


def test_a_scratch_policy_loads_like_any_other(tmp_path):
    facts = fetch_initial_policy(PolicyParams(model="scratch", architecture=SMALL), tmp_path)
    assert facts["origin"] == "random weights" and (tmp_path / "model.safetensors").is_file()
    again = fetch_initial_policy(PolicyParams(model=str(tmp_path)), tmp_path / "copy")
    assert again["parameters"] == facts["parameters"]


SFT = {"previous": "0", "data": {"source": "reasoning_gym", "held_out": 0.3}, "examples": 4, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("dotted", "value", "words"),
    [
        ("sft", {"base": SFT | {"previous": "other"}}, "sft.base.previous: expected an earlier policy"),
        ("sft", {"base": SFT | {"data": {"held_out": 0.1}}}, "sft.base.data.held_out"),
        ("sft", {"base": SFT | {"examples": None}}, "sft.base.examples: a generator has no end"),
        ("sft", {"Base": SFT}, "sft.Base"),
        ("policy.architecture", {}, "policy.architecture: describes the model `scratch`"),
        ("policy.architecture", {"hidden_size": 20, "heads": 4}, "expected a multiple of twice the heads, 8"),
        ("iterations.1.previous", "base", "iterations.1.previous"),
    ],
)
def test_wrong_settings_are_refused(dotted, value, words):
    with pytest.raises(UserError, match=words):
        check_params(parse_params(changed(dotted, value)))


def test_policies_are_in_the_order_they_are_made():
    params = parse_params(changed("sft", {"b": SFT, "a": SFT | {"previous": "b"}}))
    assert params.policies() == ["0", "b", "a", "1", "2"]
    assert sorted(["10", "2", "b", "0", "a"], key=policy_key) == ["0", "a", "b", "2", "10"]


def test_an_iteration_from_sft_has_its_memory_and_its_reference_end_there():
    raw = changed("sft", {"base": SFT})
    raw["iterations"]["1"]["previous"] = "base"
    raw["reference"]["model"] = "initial"
    params = parse_params(raw)
    assert params.memory_window("2") == ["1", "2"]
    assert (params.reference_policy("1"), params.reference_policy("2")) == ("base", "base")
    raw["reference"]["model"] = "previous"
    assert parse_params(raw).reference_policy("2") == "1"
