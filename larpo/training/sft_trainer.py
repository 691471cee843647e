"""Supervised fine-tuning: −log π(y*|x) of reference responses, the direct retriever training of the paper's Section 2.

    loss = −Σ log π(y*_t | x, y*_<t) / (response tokens of the whole optimizer step)

The prompt's tokens are read, not learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larpo.training.trainer import BaseTrainer

IGNORED = -100  # transformers' label of a token that is not learnt


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its reference response, end token included."""

    prompt_ids: list[int]
    response_ids: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class Collator:
    """[Example, …] → input_ids, attention_mask, labels, each (B, T), padded on the right."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        shape = (len(examples), max(map(len, examples)))
        ids, labels = torch.full(shape, self.pad), torch.full(shape, IGNORED)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            start, end = len(example.prompt_ids), len(example)
            ids[row, :end] = torch.tensor(example.prompt_ids + example.response_ids)
            if example.weight:
                labels[row, start:end] = ids[row, start:end]
            mask[row, :end] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class SFTTrainer(BaseTrainer):
    """The Trainer's own loss, a mean over the response tokens of the step; accumulation keeps that mean."""

    def __init__(self, model, args, examples: list[Example], pad: int, **kwargs):
        super().__init__(model, args, examples, Collator(pad), **kwargs)

    def tokens(self, examples: Sequence[Example]) -> int:
        return len(examples) * max(map(len, examples))
