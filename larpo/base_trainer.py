"""What both kinds of training share on top of `transformers.Trainer`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from larpo.errors import UserError


class WarmTrainer(Trainer):
    """A Trainer whose warm-up never takes every step."""

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
