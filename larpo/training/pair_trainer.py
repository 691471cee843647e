"""Bradley-Terry training of a reward model: −log σ(r(x, y⁺) − r(x, y⁻)), a thin subclass of `transformers.Trainer`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, TrainingArguments

from larpo.rewards.classifier import sequence_scores
from larpo.rewards.encoding import Encoded, Encoder
from larpo.sources.pairs import Pair
from larpo.training.trainer import StepMeanTrainer


def bradley_terry(margins: Tensor) -> Tensor:
    """(B,) losses of (B,) margins r(x, y⁺) − r(x, y⁻); log 2 at margin 0."""
    return -logsigmoid(margins)


@dataclass(frozen=True)
class EncodedPair:
    chosen: Encoded
    rejected: Encoded
    weight: float = 1.0


def encode_pairs(
    encoder: Encoder, pairs: list[Pair], held_out: float
) -> tuple[list[EncodedPair], list[Pair], int, int]:
    """The pairs to train on, the share `held_out` of the prompts' that is not, how many were too long for either, and
    how many lost some of their prompt."""
    kept, apart, too_long, cut = [], [], 0, 0
    for pair in pairs:
        both = EncodedPair(encoder(pair.messages, pair.chosen), encoder(pair.messages, pair.rejected))
        if both.chosen.excess or both.rejected.excess:
            too_long += 1
            continue
        cut += both.chosen.cut > 0 or both.rejected.cut > 0
        if pair.held_out(held_out):
            apart.append(pair)
        else:
            kept.append(both)
    return kept, apart, too_long, cut


def collate(pairs: list[EncodedPair]) -> dict[str, list[EncodedPair]]:
    """Padding is `sequence_scores`' own."""
    return {"batch": pairs}


class BradleyTerryTrainer(StepMeanTrainer):
    """A step's loss is the mean over all its pairs."""

    section = "reward.train"

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, pairs: list[EncodedPair], pad: int, **kwargs: Any
    ):
        super().__init__(model, args, pairs, collate, **kwargs)
        self.pad = pad

    def weights(self, batch: list[EncodedPair]) -> Tensor:
        return torch.tensor([pair.weight for pair in batch])

    def losses(self, model: PreTrainedModel, batch: list[EncodedPair]) -> tuple[Tensor, dict]:
        scores = sequence_scores(model, [p.chosen for p in batch] + [p.rejected for p in batch], self.pad)
        margins = scores[: len(batch)] - scores[len(batch) :]
        gain = margins.detach()
        one = torch.ones_like(gain)
        return bradley_terry(margins), {"reward_accuracy": (gain > 0, one), "margin": (gain, one)}
