"""What the trainers share on top of `transformers.Trainer`: a step's loss is the mean over all its examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from larpo.errors import UserError


class Examples(Dataset):
    """What is trained on, dataclasses with a field `weight`; index -1 is a copy without weight (`PaddedOrder`)."""

    def __init__(self, examples: Sequence[Any]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index] if index >= 0 else replace(self.examples[0], weight=0.0)


class PaddedOrder(Sampler[int]):
    """The random order of a single process, then -1 until every one of several processes has equally many examples.

    Left to itself, Accelerate fills the last batches with examples of the first one, which would count twice.
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


class BaseTrainer(Trainer):
    """A Trainer whose warm-up never takes every step, and which counts no example twice in several processes."""

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, examples: Sequence, collate: Callable, **kwargs: Any
    ):
        super().__init__(model=model, args=args, train_dataset=Examples(examples), data_collator=collate, **kwargs)

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
        count = torch.tensor(sum(int(self.weights(b["batch"]).sum()) for b in batches), device=device)
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
