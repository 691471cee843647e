"""Training on lists: accumulation, step 0, and the checks that stop a run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from larpo.errors import UserError
from larpo.objectives import build
from larpo.training.list_trainer import (
    ListTrainer,
    TrainingList,
    check_step0,
    collate,
    first_batch_loss,
    without_dropout,
)
from larpo.training.logps import ResponseList, pack, response_logps

OBJECTIVES = ["pairwise", "contrastive", "lambdarank", "listmle"]


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


def some_lists(model, sizes: list[int], shift: float = 0.0) -> list[TrainingList]:
    """One list per entry of `sizes`, with reference log-probabilities of `model` itself plus `shift`."""
    generator = torch.Generator().manual_seed(7)
    lists = []
    for size in sizes:
        responses = [
            torch.randint(2, 30, (int(torch.randint(1, 6, (1,), generator=generator)),), generator=generator).tolist()
            for _ in range(size)
        ]
        tokens = ResponseList([3, 4, 5], responses)
        with torch.no_grad():
            logps = response_logps(model, pack([tokens]))[0][0].tolist()
        lists.append(
            TrainingList(tokens, [float(size - j) for j in range(size)], [x + shift * j for j, x in enumerate(logps)])
        )
    return lists


def train(
    tmp_path, lists, objective="lambdarank", device_batch=4, accumulation=1, steps=2, schedule="constant", **settings
):
    model = tiny_model()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=1e-2,
        lr_scheduler_type=schedule,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_steps=1,
        use_cpu=True,
        seed=0,
        data_seed=0,
        **settings,
    )
    trainer = ListTrainer(model, args, lists, build(objective, beta=0.1))
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("objective", ["lambdarank", "listmle"])
def test_accumulation_equals_the_large_batch(tmp_path, objective):
    """8 lists of unequal length in one micro-batch of 8, four of 2, or eight of 1: the same weights."""
    lists = some_lists(tiny_model(), [4, 2, 3, 4, 2, 4, 3, 2])
    large, _ = train(tmp_path / "a", lists, objective, device_batch=8)
    for device_batch, accumulation in ((2, 4), (1, 8)):
        small, _ = train(tmp_path / f"b{accumulation}", lists, objective, device_batch, accumulation)
        for (name, a), (_, b) in zip(large.named_parameters(), small.named_parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_a_short_last_micro_batch_keeps_every_list_equal(tmp_path):
    """6 lists as 4 + 2: the step is the mean over 6 lists, not the mean of two means.

    With SGD and one step the weights change by −lr · gradient, so equal weights mean equal gradients.
    """
    lists = some_lists(tiny_model(), [4, 2, 3, 4, 2, 4])
    one, _ = train(tmp_path / "a", lists, device_batch=6, steps=1, optim="sgd", max_grad_norm=1e9)
    two, _ = train(tmp_path / "b", lists, device_batch=4, accumulation=2, steps=1, optim="sgd", max_grad_norm=1e9)
    start = tiny_model()
    moved = 0.0
    for a, b, s in zip(one.parameters(), two.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a - s, b - s, atol=1e-6, rtol=1e-3)
        moved += float((a - s).detach().abs().sum())
    assert moved > 1e-3


@pytest.mark.parametrize(("steps", "expected"), [(1, [1e-2]), (2, [0.0, 1e-2]), (20, [0.0, 5e-3, 1e-2])])
def test_warmup_never_takes_the_whole_run(tmp_path, steps, expected):
    """Warm-up of 10 %, rounded up to whole steps, starts at 0: one step would learn nothing (1 of 1 steps),
    so the last step has the full rate. 20 steps: 2 of warm-up, at 0/2 and 1/2 of the rate.
    """
    model, trainer = train(tmp_path, some_lists(tiny_model(), [3, 3]), steps=steps, warmup_steps=0.1, schedule="linear")
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[: len(expected)] == pytest.approx(expected)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))


@pytest.mark.parametrize(
    ("objective", "size", "expected"),
    [
        ("pairwise", 2, math.log(2)),  # 0.6931
        ("contrastive", 4, math.log(4)),  # one positive among four entries
        ("lambdarank", 4, 6 * math.log(2)),  # C(4, 2) = 6 strict pairs
        ("listmle", 4, math.log(24)),  # log 4!
    ],
)
def test_step0_is_the_closed_form(objective, size, expected):
    model = tiny_model()
    loss, closed = first_batch_loss(model, some_lists(model, [size] * 3), build(objective, beta=0.1))
    assert closed == pytest.approx(expected, rel=1e-6)
    assert loss == pytest.approx(expected, abs=1e-5)
    check_step0(loss, closed, "float32")


def test_reference_of_another_model_stops_the_run():
    model, other = tiny_model(0), tiny_model(1)
    lists = some_lists(other, [4, 4])
    loss, expected = first_batch_loss(model, lists, build("listmle", beta=1.0))
    with pytest.raises(UserError, match="reference log-probabilities come from other weights"):
        check_step0(loss, expected, "float32")


def test_nan_reference_is_caught_at_step0():
    with pytest.raises(UserError, match="nan"):
        check_step0(float("nan"), 0.69, "float32")


def test_nan_loss_stops_with_one_line(tmp_path):
    model = tiny_model()
    bad = [TrainingList(entry.tokens, entry.rewards, [float("nan")] * 4) for entry in some_lists(model, [4] * 4)]
    with pytest.raises(UserError, match=r"optimizer step 1.*learning_rate"):
        train(tmp_path, bad)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_orders_the_lists(tmp_path, objective):
    """On lists it can memorise, every objective lifts the best over the worst, and the share of pairs in
    reward order to near 1; contrastive alone states nothing about the order of the negatives."""
    size = 2 if objective == "pairwise" else 4
    lists = some_lists(tiny_model(), [size] * 4)
    _, trainer = train(tmp_path, lists, objective, steps=30)
    curve = [entry["reward_accuracy"] for entry in trainer.state.log_history if "reward_accuracy" in entry]
    loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    margin = [entry["margin"] for entry in trainer.state.log_history if "margin" in entry]
    assert objective == "contrastive" or curve[0] < 0.9 < curve[-1]
    assert loss[-1] < loss[0] and margin[-1] > margin[0] + 1


def test_resume_equals_an_undisturbed_run(tmp_path):
    """Stop after 3 of 6 steps, resume from the checkpoint: bit-identical weights."""
    lists = some_lists(tiny_model(), [4] * 8)

    def run(folder, steps, resume=None):
        model = tiny_model()
        args = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=6,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="steps",
            save_steps=1,
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_steps=1,
            use_cpu=True,
            seed=3,
            data_seed=3,
        )
        trainer = ListTrainer(model, args, lists, build("listmle", beta=0.1))
        if steps < 6:
            from transformers import TrainerCallback

            class Stop(TrainerCallback):
                def on_step_end(self, args, state, control, **kwargs):
                    control.should_training_stop = state.global_step >= steps

            trainer.add_callback(Stop())
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 3)
    resumed = run(tmp_path / "cut", 6, resume=str(tmp_path / "cut" / "checkpoint-3"))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_collate_shapes():
    """Lists of 4 and 2 → (2, 4) tensors, the second list masked after two entries."""
    lists = some_lists(copy.deepcopy(tiny_model()), [4, 2])
    batch = collate(lists)["batch"]
    assert batch.rewards.tolist() == [[4, 3, 2, 1], [2, 1, 0, 0]]
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.packed.shape == (2, 4)


def test_dropout_of_a_checkpoint_is_off_while_training(tmp_path):
    """The Trainer puts the model into training mode itself: only weights without any dropout move as they should."""

    def step(dropout: float):
        model = tiny_model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = dropout
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
            seed=0,
            data_seed=0,
        )
        ListTrainer(without_dropout(model), args, some_lists(tiny_model(), [3, 2]), build("lambdarank")).train()
        return model.state_dict()

    plain, noisy = step(0.0), step(0.9)
    assert all(torch.equal(plain[name], noisy[name]) for name in plain)
