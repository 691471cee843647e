"""What all kinds of training share on top of `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback

from larpo.errors import UserError


class PaddedOrder(Sampler[int]):
    """The random order of a single process, then -1 until every one of several processes has equally many examples.

    Left to itself, Accelerate fills the last batches with examples of the first one, which would count twice.
    The dataset's index -1 is an example without weight.
    """

    def __init__(self, dataset: Dataset, seed: int, multiple: int):
        self.order = SeedableRandomSampler(dataset, data_seed=seed)
        self.padding = -len(dataset) % multiple

    def __len__(self) -> int:
        return len(self.order) + self.padding

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [-1] * self.padding

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)


class WarmTrainer(Trainer):
    """A Trainer whose warm-up never takes every step, and which counts no example twice in several processes."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        processes = self.accelerator.num_processes
        if processes == 1:
            return super()._get_train_sampler(train_dataset)
        return PaddedOrder(self.train_dataset, self.args.data_seed, self.args.per_device_train_batch_size * processes)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None):
        # The Trainer rounds the warm-up up to whole steps and starts it at learning rate 0. In a run of one
        # step that would be the whole run: nothing would be learnt, silently. The last step is never warm-up.
        self.args.warmup_steps = min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1)
        return super().create_scheduler(num_training_steps, optimizer)


class StopOnLimits(TrainerCallback):
    """Stops on a gradient norm that is not finite: the weights are already spoilt then."""

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(self, args, state, control, logs=None, **kwargs):
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not torch.isfinite(torch.as_tensor(float(norm))):
            raise UserError(
                f"{self.stage}: the gradient norm is {norm} at optimizer step {state.global_step}; lower learning_rate"
            )
