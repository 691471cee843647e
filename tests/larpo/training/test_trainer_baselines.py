"""Training with the baselines: mismatched responses in the packed batch, step 0, and that each of them learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import TrainingArguments

from larpo.errors import UserError
from larpo.objectives import build
from larpo.training.list_trainer import ListTrainer, TrainingList, check_step0, collate, first_batch_loss, list_batch
from larpo.training.logps import ResponseList, pack, response_logps
from tests.larpo.training.test_trainer import some_lists, tiny_model

NAMES = ["ipo", "slic_hf", "cpo", "kto", "rdpo", "simpo", "rrhf"]


def with_mismatched(reference, lists: list[TrainingList]) -> list[TrainingList]:
    """Prompt i behind another prompt's response: here 3 + i tokens, with their log π_ref."""
    made = []
    for i, entry in enumerate(lists):
        other = [9 + i] * (3 + i)
        with torch.no_grad():
            logps, _ = response_logps(reference, pack([ResponseList(entry.tokens.prompt_ids, [other])]))
        made.append(dataclasses.replace(entry, mismatched=(other, logps.item())))
    return made


def test_collate_puts_the_mismatched_response_behind_the_list():
    """Lists of 3 and 1 with a mismatched response: packed (2, 4), everything else (2, 3)."""
    model = tiny_model()
    lists = with_mismatched(model, some_lists(model, [3, 1]))
    batch = collate(lists)["batch"]
    assert batch.packed.shape == (2, 4) and batch.mask.shape == batch.rewards.shape == (2, 3)
    tokens = [int((batch.packed.slot == slot).sum()) for slot in range(8)]
    own = [len(r) for r in lists[0].tokens.response_ids]
    assert tokens == [*own, 3, len(lists[1].tokens.response_ids[0]), 4, 0, 0]
    assert batch.mismatched_reference.tolist() == pytest.approx([entry.mismatched[1] for entry in lists])


def test_mismatched_log_ratios_come_from_the_same_forward_pass():
    """Equal to one response alone behind the prompt; no gradient, and no change of the list's own values."""
    policy, reference = tiny_model(1), tiny_model(0)
    plain = some_lists(reference, [3, 1, 2])
    lists = with_mismatched(reference, plain)
    batch, without = (list_batch(policy, collate(x)["batch"]) for x in (lists, plain))
    assert without.mismatched is None and not batch.mismatched.requires_grad
    for i, entry in enumerate(lists):
        alone = pack([ResponseList(entry.tokens.prompt_ids, [entry.mismatched[0]])])
        expected = response_logps(policy, alone)[0].item() - entry.mismatched[1]
        assert batch.mismatched[i].item() == pytest.approx(expected, abs=1e-4)
        assert abs(expected) > 1e-3
    for name in ("policy_logps", "reference_logps", "rewards", "lengths", "mask"):
        torch.testing.assert_close(getattr(batch, name), getattr(without, name), atol=1e-5, rtol=1e-5)
    gradients = []
    for x in (batch, without):
        policy.zero_grad()
        build("lambdarank", beta=1.0)(x).sum().backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_z_of_kto_holds_in_training():
    """Policy ≠ reference: `list_batch` feeds kto the z that a naive loop computes, and z is not 0."""
    policy, reference = tiny_model(1), tiny_model(0)
    lists = with_mismatched(reference, some_lists(reference, [2, 2, 2]))
    ratios = []
    for entry in lists:
        alone = pack([ResponseList(entry.tokens.prompt_ids, [entry.mismatched[0]])])
        ratios.append(response_logps(policy, alone)[0].item() - entry.mismatched[1])
    sign = 1 if sum(ratios) > 0 else -1
    if sign < 0:  # exchange the two models' parts: the log-ratios change sign
        policy, reference = reference, policy
        lists = with_mismatched(reference, some_lists(reference, [2, 2, 2]))
    z = sum(ratios) * sign / 3
    assert z > 0.01
    batch = list_batch(policy, collate(lists)["batch"])
    rho = (batch.policy_logps - batch.reference_logps).detach()
    expected = torch.sigmoid(-(rho[:, 0] - z)) + torch.sigmoid(-(z - rho[:, 1]))
    torch.testing.assert_close(build("kto", beta=1.0)(batch).detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_step0_passes_with_the_right_reference_and_stops_with_another(name):
    """Also without a reference in the loss: the expected value is that of the reference's log-probabilities."""
    model, other = tiny_model(0), tiny_model(1)  # these differ by 0.3 nats at most, too little for kto at β = 0.1
    objective = build(name, **({"beta": 1.0} if name == "kto" else {}))
    good, bad = (with_mismatched(m, some_lists(m, [2, 2, 2])) for m in (model, other))
    loss, expected = first_batch_loss(model, good, objective)
    assert loss == pytest.approx(expected, abs=1e-4 * (1 + expected))
    check_step0(loss, expected, "float32")
    with pytest.raises(UserError, match="reference log-probabilities come from other weights"):
        check_step0(*first_batch_loss(model, bad, objective), "float32")


def test_step0_of_kto_sees_mismatched_values_of_other_weights():
    """The list's own values are right, log π_ref of the mismatched responses is too low by 5: z = 5, not 0."""
    model = tiny_model()
    lists = with_mismatched(model, some_lists(model, [2, 2]))
    lists = [dataclasses.replace(x, mismatched=(x.mismatched[0], x.mismatched[1] - 5)) for x in lists]
    # λ_U counts double: with equal weights 1 − σ(−βz) + 1 − σ(βz) = 1, whatever z is.
    loss, expected = first_batch_loss(model, lists, build("kto", undesirable_weight=2.0))
    assert expected == 1.5 and loss != pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_every_baseline_trains(tmp_path, name):
    """On pairs it can memorise, each lowers its loss and brings the pairs into reward order."""
    model = tiny_model()
    lists = with_mismatched(model, some_lists(model, [2] * 4))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=30,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_steps=1,
        use_cpu=True,
        seed=0,
        data_seed=0,
    )
    trainer = ListTrainer(model, args, lists, build(name))
    trainer.train()
    loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    right = [entry["reward_accuracy"] for entry in trainer.state.log_history if "reward_accuracy" in entry]
    assert loss[-1] < 0.9 * loss[0]
    assert right[-1] > 0.7
