"""Bradley-Terry training of a reward model: −log σ(r(x, y⁺) − r(x, y⁻)), a thin subclass of `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.data import Dataset

from larpo.errors import UserError
from larpo.rewards.classifier import sequence_scores
from larpo.rewards.encoding import Encoded
from larpo.training.trainer import WarmTrainer


@dataclass(frozen=True)
class EncodedPair:
    chosen: Encoded
    rejected: Encoded


class PairDataset(Dataset):
    def __init__(self, pairs: list[EncodedPair]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> EncodedPair:
        return self.pairs[index]


def collate(pairs: list[EncodedPair]) -> dict[str, list[EncodedPair]]:
    """The Trainer wants a mapping; padding is `sequence_scores`' own."""
    return {"batch": pairs}


def bradley_terry(margins: Tensor) -> Tensor:
    """(B,) losses of (B,) margins r(x, y⁺) − r(x, y⁻); log 2 at margin 0."""
    return -logsigmoid(margins)


class BradleyTerryTrainer(WarmTrainer):
    """A step's loss is the mean over all its pairs, whatever the micro-batches."""

    def __init__(self, model, args, pairs: list[EncodedPair], pad: int, **kwargs: Any):
        super().__init__(model=model, args=args, train_dataset=PairDataset(pairs), data_collator=collate, **kwargs)
        self.pad = pad
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, float] = {}

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(b["batch"]) for b in batches), device=device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pairs = inputs["batch"]
        scores = sequence_scores(model, [p.chosen for p in pairs] + [p.rejected for p in pairs], self.pad)
        margins = scores[: len(pairs)] - scores[len(pairs) :]
        losses = bradley_terry(margins)
        if not torch.isfinite(losses).all():
            raise UserError(
                f"reward: the loss is not finite at optimizer step {self.state.global_step + 1}; lower "
                "reward.train.learning_rate or use reward.train.autocast=none"
            )
        with torch.no_grad():
            for key, value in {
                "losses": losses.sum(),
                "pairs": len(pairs),
                "right": (margins > 0).sum(),
                "margin": margins.sum(),
            }.items():
                self._sums[key] = self._sums.get(key, 0.0) + float(value)
        # Data-parallel training averages gradients over processes; the sum over all pairs is wanted.
        loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sums.get("pairs"):
            pairs = self._sums["pairs"]
            logs["loss"] = self._sums["losses"] / pairs
            logs["reward_accuracy"] = self._sums["right"] / pairs
            logs["margin"] = self._sums["margin"] / pairs
            self._sums = {}
        super().log(logs, *args, **kwargs)
