"""Training on ordered lists: a thin subclass of `transformers.Trainer`.

The Trainer brings gradient accumulation, checkpoints, resuming, FSDP and DeepSpeed. This file adds what is
LARPO's: the packed lists, the ranking objective, and the checks that stop a run that starts wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from larpo.errors import UserError
from larpo.objectives import ListBatch
from larpo.training.logps import PackedLists, ResponseList, pack, response_logps
from larpo.training.trainer import WarmTrainer

STEP0_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest |loss − expected| per list, relative to 1 + expected, at the first step."""


@dataclass(frozen=True)
class TrainingList:
    """One prompt's list with what the objective needs, columns in falling reward order."""

    tokens: ResponseList
    rewards: list[float]
    reference_logps: list[float]
    mismatched: tuple[list[int], float] | None = None
    """A response to another prompt: its token ids, and its log π_ref behind this list's prompt."""
    weight: float = 1.0  # 0 for a copy that only fills up a batch, see `larpo.training.trainer.PaddedOrder`


class ListDataset(Dataset):
    """The lists; index -1 is a copy without weight."""

    def __init__(self, lists: list[TrainingList]):
        self.lists = lists

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> TrainingList:
        return self.lists[index] if index >= 0 else replace(self.lists[0], weight=0.0)


@dataclass
class Collated:
    """A micro-batch: B lists of at most m responses, padding masked."""

    packed: PackedLists  # with mismatched responses (B, m + 1): a list's stands behind its last own response
    rewards: Tensor  # (B, m)
    reference_logps: Tensor  # (B, m)
    mask: Tensor  # (B, m) bool
    weight: Tensor  # (B,) 1, or 0 for padding lists
    mismatched_reference: Tensor | None = None  # (B,)


def collate(lists: list[TrainingList]) -> dict[str, Collated]:
    """[TrainingList, …] → {"batch": Collated}; the Trainer wants a mapping. All lists have a mismatched response
    or none has."""
    tokens, mismatched = [entry.tokens for entry in lists], None
    if lists[0].mismatched is not None:
        tokens = [
            replace(entry.tokens, response_ids=[*entry.tokens.response_ids, entry.mismatched[0]]) for entry in lists
        ]
        mismatched = torch.tensor([entry.mismatched[1] for entry in lists])
    packed = pack(tokens)
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


class ListTrainer(WarmTrainer):
    """`objective` maps a `ListBatch` to (B,) losses; a step's loss is their mean over all its lists.

    The mean runs over the lists of the whole optimizer step, not over micro-batches: accumulation gives the
    gradient of the large batch also when the last micro-batch is smaller.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        lists: list[TrainingList],
        objective: Callable,
        **kwargs: Any,
    ):
        super().__init__(model=model, args=args, train_dataset=ListDataset(lists), data_collator=collate, **kwargs)
        self.objective = objective
        # Tells the Trainer that `compute_loss` divides by the step's number of lists itself.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, float] = {}

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(int(b["batch"].weight.sum()) for b in batches), device=device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs  # `list_batch` moves the tensors; the Trainer cannot look into a dataclass

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = list_batch(model, inputs["batch"])
        weight = inputs["batch"].weight.to(batch.policy_logps.device)
        losses = self.objective(batch) * weight
        if not torch.isfinite(losses).all():
            raise UserError(
                f"train: the loss is {losses.detach().sum().item()} at optimizer step {self.state.global_step + 1}; "
                "lower train.learning_rate or train.max_grad_norm, or use train.autocast=none"
            )
        self._record(batch, losses, weight)
        # Data-parallel training averages gradients over processes; the sum over all lists is wanted.
        loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def _record(self, batch: ListBatch, losses: Tensor, weight: Tensor) -> None:
        """Sums for the log: share of strictly ordered pairs that the implicit reward ranks as the reward
        does, and the implicit reward's margin between a list's best and worst."""
        gain = (batch.policy_logps - batch.reference_logps).float()
        strict = batch.rewards[:, :, None] > batch.rewards[:, None, :]
        strict &= batch.mask[:, :, None] & batch.mask[:, None, :] & (weight > 0)[:, None, None]
        right = (gain[:, :, None] > gain[:, None, :]) & strict
        last = batch.mask.sum(1) - 1
        margin = gain[:, 0] - gain.gather(1, last[:, None])[:, 0]
        for key, value in {
            "losses": losses.sum(),
            "lists": weight.sum(),
            "right": right.sum(),
            "pairs": strict.sum(),
            "margin": (margin * weight).sum(),
        }.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(value)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sums:
            if self.accelerator.num_processes > 1:
                mine = torch.tensor(list(self._sums.values()), dtype=torch.float64, device=self.args.device)
                total = self.accelerator.reduce(mine, "sum").tolist()
                self._sums = dict(zip(self._sums, total, strict=True))
            lists, pairs = self._sums["lists"], max(self._sums["pairs"], 1.0)
            logs["loss"] = self._sums["losses"] / lists
            logs["reward_accuracy"] = self._sums["right"] / pairs
            logs["margin"] = self._sums["margin"] / lists
            self._sums = {}
        super().log(logs, *args, **kwargs)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every dropout set to 0: the Trainer switches to training mode in each step, and noise in the
    log-ratios would make a policy differ from its reference where they are the same model."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def first_batch_loss(model: PreTrainedModel, lists: list[TrainingList], objective: Callable) -> tuple[float, float]:
    """(loss, expected loss) per list of the untrained policy on some lists.

    Expected is the objective's closed form for policy = reference (log 2 for a pair, log m! for ListMLE …).
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
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
