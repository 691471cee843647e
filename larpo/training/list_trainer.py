"""Training on ordered lists: a thin subclass of `transformers.Trainer`.

The Trainer brings gradient accumulation, checkpoints, resuming, FSDP and DeepSpeed. This file adds what is
LARPO's: the packed lists, the ranking objective, and the check that stops a run that starts wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from larpo.errors import UserError
from larpo.objectives import ListBatch
from larpo.training.forward import settle
from larpo.training.logps import response_logps
from larpo.training.packing import PackedLists, ResponseList, pack, tokens_of
from larpo.training.trainer import StepMeanTrainer

STEP0_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""Largest |loss − expected| per list, relative to 1 + expected, at the first step, by the dtype of the computation."""


@dataclass(frozen=True)
class TrainingList:
    """One prompt's list with what the objective needs, columns in falling reward order."""

    tokens: ResponseList
    rewards: list[float]
    reference_logps: list[float]
    mismatched: tuple[list[int], float] | None = None
    """A response to another prompt: its token ids, and its log π_ref behind this list's prompt."""
    weight: float = 1.0


@dataclass
class Collated:
    """A micro-batch: B lists of at most m responses, padding masked."""

    packed: PackedLists  # with mismatched responses (B, m + 1): a list's stands behind its last own response
    rewards: Tensor  # (B, m)
    reference_logps: Tensor  # (B, m)
    mask: Tensor  # (B, m) bool
    weight: Tensor  # (B,) 1, or 0 for padding lists
    mismatched_reference: Tensor | None = None  # (B,)


def with_mismatched(entry: TrainingList) -> ResponseList:
    """The list's tokens, its mismatched response last where it has one."""
    if entry.mismatched is None:
        return entry.tokens
    return replace(entry.tokens, response_ids=[*entry.tokens.response_ids, entry.mismatched[0]])


def collate(lists: list[TrainingList]) -> dict[str, Collated]:
    """[TrainingList, …] → {"batch": Collated}; the Trainer wants a mapping. All lists have a mismatched response
    or none has."""
    packed, mismatched = pack([with_mismatched(entry) for entry in lists]), None
    if lists[0].mismatched is not None:
        mismatched = torch.tensor([entry.mismatched[1] for entry in lists])
    shape = len(lists), max(len(entry.rewards) for entry in lists)
    rewards, reference, mask = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for row, entry in enumerate(lists):
        size = len(entry.rewards)
        rewards[row, :size] = torch.tensor(entry.rewards)
        reference[row, :size] = torch.tensor(entry.reference_logps)
        mask[row, :size] = True
    weight = torch.tensor([entry.weight for entry in lists])
    return {"batch": Collated(packed, rewards, reference, mask, weight, mismatched)}


def list_batch(model: PreTrainedModel, batch: Collated) -> ListBatch:
    """The objective's input for one micro-batch, with gradients through the policy's log-probabilities.

    A mismatched response is one more branch of the same forward pass, which no other branch sees; its value
    carries no gradient.
    """
    device = next(model.parameters()).device
    logps, lengths = response_logps(model, batch.packed.to(device))
    mask, mismatched = batch.mask.to(device), None
    width = mask.shape[1]
    if batch.mismatched_reference is not None:
        behind = mask.sum(1, keepdim=True)
        mismatched = logps.detach().gather(1, behind)[:, 0] - batch.mismatched_reference.to(device)
    return ListBatch(
        policy_logps=logps[:, :width],
        reference_logps=batch.reference_logps.to(device),
        lengths=lengths[:, :width],
        rewards=batch.rewards.to(device),
        mask=mask,
        mismatched=mismatched,
    )


class ListTrainer(StepMeanTrainer):
    """`objective` maps a `ListBatch` to (B,) losses; a step's loss is their mean over all its lists.

    How the model is computed is settled here, in every process alike: once the model is sharded, a forward pass is one
    of all processes together.
    """

    section = "train"

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        lists: list[TrainingList],
        objective: Callable,
        **kwargs: Any,
    ):
        self.packed = settle(model.to(args.device), args.bf16).packed
        super().__init__(model, args, lists, collate, **kwargs)
        self.objective = objective

    def tokens(self, lists: Sequence[TrainingList]) -> int:
        return tokens_of([with_mismatched(entry) for entry in lists], self.packed)

    def weights(self, batch: Collated) -> Tensor:
        return batch.weight

    def losses(self, model: PreTrainedModel, batch: Collated) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Beside the losses: share of strictly ordered pairs that the implicit reward ranks as the reward does, and
        the implicit reward's margin between a list's best and worst."""
        lists = list_batch(model, batch)
        losses = self.objective(lists)
        gain, strict = lists.log_ratios().detach(), lists.preferred()
        right = (gain[:, :, None] > gain[:, None, :]) & strict
        last = lists.mask.sum(1) - 1
        margin = gain[:, 0] - gain.gather(1, last[:, None])[:, 0]
        return losses, {
            "reward_accuracy": (right.sum((1, 2)), strict.sum((1, 2))),
            "margin": (margin, torch.ones_like(margin)),
        }


def without_noise(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode for good. The Trainer switches to training mode in each step, where dropout, jitter
    and experts drawn by lot would make a policy differ from its reference where they are the same model. Layers that
    can be recomputed are asked for their mode before they are called, and by their own code afterwards."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, _: setattr(layer, "training", False))

    def train(mode: bool = True) -> PreTrainedModel:
        type(model).train(model, False)
        for layer in layers:
            layer.training = mode
        return model

    model.train = train
    return model


def first_batch_loss(
    model: PreTrainedModel, lists: list[TrainingList], objective: Callable, autocast: bool = False
) -> tuple[float, float]:
    """(loss, expected loss) per list of the untrained policy on some lists, computed as training does: in bfloat16 with
    `autocast`.

    Expected is the objective's value where the policy is the reference (log 2 for a pair, log m! for ListMLE …).
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        batch = list_batch(model, collate(lists)["batch"])
        loss, expected = objective(batch).mean(), objective.at_reference(batch).mean()
    model.train(was_training)
    return float(loss), float(expected)


def check_step0(loss: float, expected: float, dtype: str) -> None:
    """Stop a run whose policy and reference disagree before the first step."""
    if not abs(loss - expected) <= STEP0_TOLERANCE[dtype] * (1 + abs(expected)):
        raise UserError(
            f"train: the loss before the first step is {loss:.6f}, expected {expected:.6f} where policy and "
            "reference are the same model; the reference log-probabilities come from other weights, token ids "
            "or another dtype: run `dvc repro --force --single-item` on the reference node"
        )
