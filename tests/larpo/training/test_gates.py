"""Three gates that training passes on every device: two runs are equal, what makes it fast changes no result, and a run
that was stopped ends as one that was not. On the CPU always, on CUDA where there is one."""

from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from larpo.objectives import build
from larpo.training.determinism import deterministic
from larpo.training.forward import way_of
from larpo.training.list_trainer import ListTrainer
from larpo.training.micro_batches import Budget
from tests.larpo.training.families import family
from tests.larpo.training.kit import arguments, assert_same_weights, some_lists, tiny_model

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
MODELS = ["llama", "gemma2"]  # this one with caps on attention and logits, and a window that the lists exceed
TOLERANCE = {False: 1e-5, True: 5e-2}  # of an update of the weights, relative to its largest; in bfloat16
LAST_BIT = 1.2e-7  # of float32 weights near 1, from which updates are told


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def trained(folder, kind, device, *, plain=False, stop=4, resume=None, **settings):
    """(start, weights) of a model trained on eight lists of unequal lengths, four a step: packed, in micro-batches by
    tokens and with its head in chunks; `plain` is the class's own forward pass over one response per row with the
    attention and the whole logits that its authors wrote, four lists at once."""
    with deterministic(0, "train"):
        model = family(kind).train()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        settings = {"max_steps": 4, "use_cpu": device == "cpu", "save_strategy": "steps", "save_steps": 1} | settings
        args = arguments(folder, per_device_train_batch_size=4 if plain else 1, **settings)
        if plain:
            way = way_of(model.to(args.device))
            model.set_attn_implementation("eager")
            model.larpo_way = replace(way, packed=False, whole=True, implementation="eager")
        lists = some_lists(tiny_model(), [4, 2, 3, 4, 2, 4, 3, 2])
        options = {"budget": None if plain else Budget(4, 30), "callbacks": [StopAt(stop)]}
        trainer = ListTrainer(model, args, lists, build("lambdarank", beta=0.1), **options)
        assert trainer.packed is not plain
        trainer.train(resume_from_checkpoint=resume)
    return start, model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("device", DEVICES)
def test_two_runs_are_equal(tmp_path, kind, device):
    (_, one), (_, two) = (trained(tmp_path / str(i), kind, device) for i in range(2))
    assert_same_weights(one, two, atol=0, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("device", DEVICES)
def test_optimised_equals_plain(tmp_path, kind, device, autocast):
    """By SGD, whose update is the gradient: the four steps move every weight alike."""
    plainly = {"optim": "sgd", "max_grad_norm": 1e9, "bf16": autocast}
    start, fast = trained(tmp_path / "fast", kind, device, **plainly)
    _, slow = trained(tmp_path / "slow", kind, device, plain=True, **plainly)
    for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        ours, theirs = a.cpu() - start[name], b.cpu() - start[name]
        assert float(theirs.abs().max()) > 1e-7
        close = TOLERANCE[autocast] * float(theirs.abs().max()) + LAST_BIT
        torch.testing.assert_close(ours, theirs, atol=close, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("device", DEVICES)
def test_restarted_equals_uninterrupted(tmp_path, kind, device):
    """Stopped after one of four steps, in the middle of an epoch, and after three."""
    linear = {"lr_scheduler_type": "linear"}
    _, whole = trained(tmp_path / "whole", kind, device, **linear)
    for stop in (1, 3):
        trained(tmp_path / "cut", kind, device, stop=stop, **linear)
        _, resumed = trained(tmp_path / "cut", kind, device, resume=str(tmp_path / f"cut/checkpoint-{stop}"), **linear)
        assert_same_weights(whole, resumed, atol=0, rtol=0)
