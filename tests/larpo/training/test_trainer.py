"""Training on lists: accumulation, step 0, mismatched responses, and the checks that stop a run."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_layers import GradientCheckpointingLayer

from larpo.errors import UserError
from larpo.objectives import build
from larpo.training.forward import way_of
from larpo.training.list_trainer import (
    ListTrainer,
    TrainingList,
    check_step0,
    collate,
    first_batch_loss,
    list_batch,
    without_noise,
)
from larpo.training.micro_batches import Budget, Examples, PaddedOrder, TokenBatches
from larpo.training.packing import one_per_row
from larpo.training.sft_trainer import Example
from tests.larpo.training.families import family
from tests.larpo.training.kit import (
    arguments,
    assert_same_weights,
    curve,
    logps_of,
    some_lists,
    tiny_model,
    with_mismatched,
)

OBJECTIVES = ["pairwise", "contrastive", "lambdarank", "listmle"]
BASELINES = ["ipo", "slic_hf", "cpo", "kto", "rdpo", "simpo", "rrhf"]


def train(folder, lists, objective="lambdarank", device_batch=4, accumulation=1, **more):
    args = arguments(folder, per_device_train_batch_size=device_batch, gradient_accumulation_steps=accumulation, **more)
    model = tiny_model()
    objective = build(objective, **({"beta": 0.1} if objective in OBJECTIVES else {}))
    trainer = ListTrainer(model, args, lists, objective)
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("objective", ["lambdarank", "listmle"])
def test_accumulation_equals_the_large_batch(tmp_path, objective):
    """8 lists of unequal length in one micro-batch of 8, four of 2, or eight of 1: the same weights."""
    lists = some_lists(tiny_model(), [4, 2, 3, 4, 2, 4, 3, 2])
    large, _ = train(tmp_path / "a", lists, objective, device_batch=8)
    for device_batch, accumulation in ((2, 4), (1, 8)):
        small, _ = train(tmp_path / f"b{accumulation}", lists, objective, device_batch, accumulation)
        assert_same_weights(large, small, atol=2e-4, rtol=1e-3)


def test_a_short_last_micro_batch_keeps_every_list_equal(tmp_path):
    """6 lists as 4 + 2: the step is the mean over 6 lists, not the mean of two means.

    With SGD and one step the weights change by −lr · gradient, so equal weights mean equal gradients.
    """
    lists = some_lists(tiny_model(), [4, 2, 3, 4, 2, 4])
    sgd = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 1e9}
    one, _ = train(tmp_path / "a", lists, device_batch=6, **sgd)
    two, _ = train(tmp_path / "b", lists, device_batch=4, accumulation=2, **sgd)
    moved = 0.0
    for a, b, s in zip(one.parameters(), two.parameters(), tiny_model().parameters(), strict=True):
        torch.testing.assert_close(a - s, b - s, atol=1e-6, rtol=1e-3)
        moved += float((a - s).detach().abs().sum())
    assert moved > 1e-3


@pytest.mark.parametrize("packed", [True, False])
def test_micro_batches_by_tokens_are_the_plain_step(tmp_path, packed):
    """8 lists in two steps of 5 and 3: whatever the limit, the losses, gradients and weights of one batch a step, to
    rounding. Without packing a micro-batch counts what fills its rows up."""
    lists = some_lists(tiny_model(), [4, 2, 3, 4, 2, 4, 3, 2])

    def run(**options):
        model = tiny_model()
        way = way_of(model)
        model.larpo_way = dataclasses.replace(way, packed=packed)
        args = arguments(tmp_path, per_device_train_batch_size=1 if options else 5, optim="sgd")
        trainer = ListTrainer(model, args, lists, build("lambdarank", beta=0.1), **options)
        trainer.train()
        return model, trainer

    plain, trainer = run()
    for tokens in (1, 20, 35, 1000):
        model, other = run(budget=Budget(5, tokens))
        assert_same_weights(plain, model, atol=1e-6, rtol=1e-5)
        for name in ("loss", "grad_norm", "reward_accuracy", "margin"):
            assert curve(other, name) == pytest.approx(curve(trainer, name), rel=1e-4, abs=1e-6), name
        steps = list(other.get_train_dataloader())
        sizes = [[len(micro["batch"].weight) for micro in step["parts"]] for step in steps]
        assert [sum(step) for step in sizes] == [5, 3]
        for micro in (m for step in steps for m in step["parts"]):
            ids = micro["batch"].packed.input_ids if packed else one_per_row(micro["batch"].packed)[0]
            assert ids.numel() <= tokens or len(micro["batch"].weight) == 1
        assert sizes == [[5], [3]] if tokens == 1000 else len(sizes[0]) > 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 6), st.integers(1, 20), st.integers(1, 4))
def test_every_list_once_and_equally_many_micro_batches(lengths, per_step, tokens, processes):
    """In each step: the examples of the plain order, longest first, none twice, within the limit, in equally many
    micro-batches on every process."""
    dataset = Examples([Example([], [0] * n) for n in lengths])
    sampler = TokenBatches(dataset, 3, Budget(per_step, tokens), processes, lambda some: sum(map(len, some)))
    order, steps = list(PaddedOrder(dataset, 3, 1)), list(sampler)
    assert len(steps) == len(sampler) == -(-len(lengths) // per_step) * processes
    for n in range(0, len(steps), processes):
        shares, start = steps[n : n + processes], n // processes * per_step
        assert len({len(share) for share in shares}) == 1
        real = [i for share in shares for micro in share for i in micro if i >= 0]
        assert sorted(real) == sorted(order[start : start + per_step])
        for micro in (micro for share in shares for micro in share):
            assert micro and (len(micro) == 1 or sum(lengths[i] for i in micro) <= tokens)
    assert max(lengths[i] for i in order[:per_step]) == lengths[steps[0][0][0]]


@pytest.mark.parametrize(("steps", "expected"), [(1, [1e-2]), (2, [0.0, 1e-2]), (20, [0.0, 5e-3, 1e-2])])
def test_warmup_never_takes_the_whole_run(tmp_path, steps, expected):
    """Warm-up of 10 %, rounded up to whole steps, starts at 0: one step would learn nothing (1 of 1 steps),
    so the last step has the full rate. 20 steps: 2 of warm-up, at 0/2 and 1/2 of the rate.
    """
    lists, linear = some_lists(tiny_model(), [3, 3]), {"warmup_steps": 0.1, "lr_scheduler_type": "linear"}
    model, trainer = train(tmp_path, lists, max_steps=steps, **linear)
    assert curve(trainer, "learning_rate")[: len(expected)] == pytest.approx(expected)
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


@pytest.mark.parametrize("name", ["listmle", *BASELINES])
def test_step0_passes_with_the_right_reference_and_stops_with_another(name):
    """Also without a reference in the loss: the expected value is that of the reference's log-probabilities."""
    model, other = tiny_model(0), tiny_model(1)  # these differ by 0.3 nats at most, too little for kto at β = 0.1
    objective = build(name, **({"beta": 1.0} if name in ("kto", "listmle") else {}))
    good, bad = (with_mismatched(m, some_lists(m, [2, 2, 2])) for m in (model, other))
    loss, expected = first_batch_loss(model, good, objective)
    assert loss == pytest.approx(expected, abs=1e-4 * (1 + expected))
    check_step0(loss, expected, "float32")
    with pytest.raises(UserError, match="reference log-probabilities come from other weights"):
        check_step0(*first_batch_loss(model, bad, objective), "float32")


def test_step0_in_bfloat16_holds_where_reference_and_policy_are_computed_alike():
    """Each list alone, as a reference pass may do, against all in one micro-batch, both under autocast: the loss is
    within the tolerance. A reference in other weights is not."""
    model, losses = family("llama"), {}
    for name, weights in (("same", model), ("other", family("llama", initializer_range=0.2))):
        lists = []
        with torch.autocast("cpu", torch.bfloat16):
            for entry in some_lists(tiny_model(), [4, 4, 4]):
                logps = logps_of(weights, entry.tokens.prompt_ids, entry.tokens.response_ids)
                lists.append(dataclasses.replace(entry, reference_logps=logps))
        losses[name] = first_batch_loss(model, lists, build("listmle", beta=1.0), autocast=True)
    check_step0(*losses["same"], "bfloat16")
    with pytest.raises(UserError, match="reference log-probabilities come from other weights"):
        check_step0(*losses["other"], "bfloat16")


def test_nan_is_caught_at_step0_and_in_training(tmp_path):
    with pytest.raises(UserError, match="nan"):
        check_step0(float("nan"), 0.69, "float32")
    bad = [dataclasses.replace(entry, reference_logps=[math.nan] * 4) for entry in some_lists(tiny_model(), [4] * 4)]
    with pytest.raises(UserError, match=r"optimizer step 1.*learning_rate"):
        train(tmp_path, bad)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_orders_the_lists(tmp_path, objective):
    """On lists it can memorise, every objective lifts the best over the worst, and the share of pairs in
    reward order to near 1; contrastive alone states nothing about the order of the negatives."""
    lists = some_lists(tiny_model(), [2 if objective == "pairwise" else 4] * 4)
    _, trainer = train(tmp_path, lists, objective, max_steps=30)
    right, loss, margin = (curve(trainer, name) for name in ("reward_accuracy", "loss", "margin"))
    assert objective == "contrastive" or right[0] < 0.9 < right[-1]
    assert loss[-1] < loss[0] and margin[-1] > margin[0] + 1


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains(tmp_path, name):
    """On pairs it can memorise, each lowers its loss and brings the pairs into reward order."""
    model = tiny_model()
    _, trainer = train(tmp_path, with_mismatched(model, some_lists(model, [2] * 4)), name, max_steps=30)
    assert curve(trainer, "loss")[-1] < 0.9 * curve(trainer, "loss")[0]
    assert curve(trainer, "reward_accuracy")[-1] > 0.7


def test_collate_shapes():
    """Lists of 4 and 2 → (2, 4) tensors, the second list masked after two entries."""
    batch = collate(some_lists(tiny_model(), [4, 2]))["batch"]
    assert batch.rewards.tolist() == [[4, 3, 2, 1], [2, 1, 0, 0]]
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.packed.shape == (2, 4)


NOISY = {
    "llama": {"attention_dropout": 0.9},
    "mixtral": {"router_jitter_noise": 0.9},  # experts see inputs times a random number
    "opt": {"dropout": 0.9, "layerdrop": 0.5},
    "falcon": {"hidden_dropout": 0.9},  # asked of the configuration
}


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("recompute", [False, True])
def test_noise_of_a_checkpoint_is_off_while_training(tmp_path, name, recompute):
    """The Trainer puts the model into training mode itself: only weights without any noise move as they should."""

    def step(**noise: float):
        model, calls = without_noise(family(name, **noise)), []
        options = {"gradient_checkpointing": recompute, "max_steps": 1}
        trainer = ListTrainer(model, arguments(tmp_path, **options), some_lists(model, [3, 2]), build("lambdarank"))
        layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
        trainer.train()
        assert len(calls) == 1 + recompute
        return model

    assert_same_weights(step(**dict.fromkeys(NOISY[name], 0.0)), step(**NOISY[name]), atol=0, rtol=0)


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


def mismatched_ratios(policy, lists: list[TrainingList]) -> list[float]:
    """log π − log π_ref of the mismatched responses, each alone behind its prompt."""
    return [logps_of(policy, x.tokens.prompt_ids, [x.mismatched[0]])[0] - x.mismatched[1] for x in lists]


def test_mismatched_log_ratios_come_from_the_same_forward_pass():
    """Equal to one response alone behind the prompt; no gradient, and no change of the list's own values."""
    policy, reference = tiny_model(1), tiny_model(0)
    plain = some_lists(reference, [3, 1, 2])
    lists = with_mismatched(reference, plain)
    batch, without = (list_batch(policy, collate(x)["batch"]) for x in (lists, plain))
    assert without.mismatched is None and not batch.mismatched.requires_grad
    ratios = mismatched_ratios(policy, lists)
    assert batch.mismatched.tolist() == pytest.approx(ratios, abs=1e-4)
    assert min(map(abs, ratios)) > 1e-3
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
    if sum(mismatched_ratios(policy, lists)) < 0:  # exchange the two models' parts: the log-ratios change sign
        policy, reference = reference, policy
        lists = with_mismatched(reference, some_lists(reference, [2, 2, 2]))
    z = sum(mismatched_ratios(policy, lists)) / 3
    assert z > 0.01
    batch = list_batch(policy, collate(lists)["batch"])
    rho = (batch.policy_logps - batch.reference_logps).detach()
    expected = torch.sigmoid(-(rho[:, 0] - z)) + torch.sigmoid(-(z - rho[:, 1]))
    torch.testing.assert_close(build("kto", beta=1.0)(batch).detach(), expected, atol=1e-4, rtol=1e-4)


def test_step0_of_kto_sees_mismatched_values_of_other_weights():
    """The list's own values are right, log π_ref of the mismatched responses is too low by 5: z = 5, not 0."""
    model = tiny_model()
    lists = with_mismatched(model, some_lists(model, [2, 2]))
    lists = [dataclasses.replace(x, mismatched=(x.mismatched[0], x.mismatched[1] - 5)) for x in lists]
    # λ_U counts double: with equal weights 1 − σ(−βz) + 1 − σ(βz) = 1, whatever z is.
    loss, expected = first_batch_loss(model, lists, build("kto", undesirable_weight=2.0))
    assert expected == 1.5 and loss != pytest.approx(1.5, abs=0.05)
