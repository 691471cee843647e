"""Optimizers by the names of params.yaml: which of transformers' they are, and 8-bit AdamW on bfloat16 weights."""

import importlib.util

import pytest
import torch

from larpo.config.sections import TrainParams
from larpo.errors import UserError
from larpo.objectives import build
from larpo.training import arguments as module
from larpo.training.arguments import training_arguments
from larpo.training.determinism import deterministic
from larpo.training.list_trainer import ListTrainer
from tests.larpo.training.families import family
from tests.larpo.training.kit import some_lists, tiny_model


def arguments_of(folder, **section):
    params = TrainParams(learning_rate=1e-6, lists_per_step=4, lists_per_device_batch=4, **section)
    return training_arguments(params, "train", "lists", folder, 0, use_cpu=True)


@pytest.mark.parametrize(
    ("section", "optim"),
    [
        ({}, "adamw_torch_fused"),
        ({"optimizer": "adafactor"}, "adafactor"),
        ({"optimizer": "sgd"}, "sgd"),
        ({"trainer_options": {"optim": "adagrad"}}, "adagrad"),
    ],
)
def test_names(tmp_path, section, optim):
    assert arguments_of(tmp_path, **section).optim == optim
    assert "optimizer" not in TrainParams(learning_rate=1.0).model_dump(), "records of older runs have no such key"


def test_what_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^params.yaml: train.optimizer: adamw_8bit needs torchao.*torchao\.txt$"):
        arguments_of(tmp_path, optimizer="adamw_8bit")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_small_steps_survive_in_bfloat16(tmp_path):
    """Steps of 1e-6, where weights are near 0.3 and bfloat16 numbers 1e-3 apart: AdamW moves hardly any of them; 8-bit
    AdamW moves some, by whole distances, and twice the same."""

    def moved(optimizer):
        with deterministic(0, "train"):
            model = family("llama").to(torch.bfloat16).train()
            start = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
            lists = some_lists(tiny_model(), [4, 2, 3, 4])
            args = arguments_of(tmp_path / optimizer, optimizer=optimizer, max_steps=8)
            ListTrainer(model, args, lists, build("lambdarank", beta=0.1)).train()
        return torch.cat([p.detach().flatten() for p in model.parameters()]) != start

    rounded, again, plain = moved("adamw_8bit"), moved("adamw_8bit"), moved("adamw")
    assert torch.equal(rounded, again)
    assert plain.float().mean() < 0.02 < rounded.float().mean() * 20
    assert rounded.sum() > 2 * plain.sum()
