"""What the trainers share on top of `transformers.Trainer`: a step's loss is the mean over all its examples."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from larpo.errors import UserError
from larpo.training.micro_batches import Budget, Examples, PaddedOrder, TokenBatches


class BaseTrainer(Trainer):
    """The Trainer whose warm-up never takes the whole run, and which counts no example twice in several processes.

    Parameters
    ----------
    budget
        Micro-batches by tokens in place of `args.per_device_train_batch_size`; then a batch of the data loader is what
        a process computes of one step: {"parts": [micro-batch, …]}.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        examples: Sequence,
        collate: Callable,
        budget: Budget | None = None,
        **kwargs: Any,
    ):
        self.budget = budget
        collator = collate if budget is None else lambda step: {"parts": [collate(part) for part in step[0]]}
        super().__init__(model=model, args=args, train_dataset=Examples(examples), data_collator=collator, **kwargs)

    def tokens(self, examples: Sequence[Any]) -> int:
        """That they have in memory together, for micro-batches by tokens."""
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        processes, dataset, seed = self.accelerator.num_processes, self.train_dataset, self.args.data_seed
        if self.budget is not None:
            return TokenBatches(dataset, seed, self.budget, processes, self.tokens)
        if processes == 1:
            return super()._get_train_sampler(train_dataset)
        return PaddedOrder(dataset, seed, self.args.per_device_train_batch_size * processes)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if "parts" not in inputs:
            return super().training_step(model, inputs, num_items_in_batch)
        *before, last = inputs["parts"]
        total = torch.zeros((), device=self.args.device)
        for part in before:
            self.accelerator.gradient_state._set_sync_gradients(False)
            with self.accelerator.no_sync(model):
                total += super().training_step(model, part, num_items_in_batch)
        self.accelerator.gradient_state._set_sync_gradients(True)
        return total + super().training_step(model, last, num_items_in_batch)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        return super()._get_num_items_in_batch([m for b in batch_samples for m in b.get("parts", [b])], device)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None):
        # The Trainer rounds the warm-up up to whole steps and starts it at learning rate 0. In a run of one
        # step that would be the whole run: nothing would be learnt, silently. The last step is never warm-up.
        self.args.warmup_steps = min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1)
        return super().create_scheduler(num_training_steps, optimizer)


class StepMeanTrainer(BaseTrainer):
    """The loss of an optimizer step is the mean over its n examples, in all micro-batches and processes:

        Σ_i weight_i · loss_i / Σ_i weight_i

    so accumulation gives the gradient of the large batch also when the last micro-batch is smaller. A subclass says
    what an example's loss is. `collate` makes {"batch": …} of examples; the Trainer wants a mapping.
    """

    section: ClassVar[str]  # of params.yaml, for errors

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Tells the Trainer that `compute_loss` divides by the step's number of examples itself.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, list[float]] = {}

    def weights(self, batch: Any) -> Tensor:
        """(n,) 1 for an example of the micro-batch, 0 for one that only fills it up."""
        raise NotImplementedError

    def losses(self, model: PreTrainedModel, batch: Any) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The micro-batch's (n,) losses, and what is logged beside them: name → (n,) values and (n,) counts; the log
        has Σ values / Σ counts."""
        raise NotImplementedError

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses, curves = self.losses(model, inputs["batch"])
        weights = self.weights(inputs["batch"]).to(losses.device)
        losses = losses * weights
        if not torch.isfinite(losses).all():
            raise UserError(
                f"{self.section}: the loss is {losses.detach().sum().item()} at optimizer step "
                f"{self.state.global_step + 1}; lower {self.section}.learning_rate or {self.section}.max_grad_norm, "
                f"or use {self.section}.autocast=none"
            )
        self._add("loss", losses, weights)
        for name, (values, counts) in curves.items():
            self._add(name, values * weights, counts * weights)
        # Data-parallel training averages gradients over processes; the sum over all examples is what is meant.
        loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        micro = [m for b in batches for m in b.get("parts", [b])]
        count = torch.tensor(sum(int(self.weights(m["batch"]).sum()) for m in micro), device=device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs  # `losses` moves the tensors; the Trainer cannot look into a dataclass

    def _add(self, name: str, values: Tensor, counts: Tensor) -> None:
        total = self._sums.setdefault(name, [0.0, 0.0])
        total[0] += float(values.detach().sum())
        total[1] += float(counts.sum())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sums:
            sums = torch.tensor(list(self._sums.values()), dtype=torch.float64)
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
            logs |= {
                name: value / max(count, 1.0) for name, (value, count) in zip(self._sums, sums.tolist(), strict=True)
            }
            self._sums = {}
        super().log(logs, *args, **kwargs)


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
