"""Our parameters of training as `transformers.TrainingArguments`."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import TrainingArguments

from larpo.config.sections import OptimizerParams
from larpo.config.training import OPTIMIZERS
from larpo.errors import UserError
from larpo.training.micro_batches import Budget


def training_arguments(
    params: OptimizerParams, section: str, units: str, folder: Path, seed: int, **defaults: object
) -> TrainingArguments:
    """Our parameters as `transformers.TrainingArguments`.

    Parameters
    ----------
    section
        Where `params` stands in params.yaml, for errors.
    units
        What is trained on: its fields `UNITS_per_step` and `UNITS_per_device_batch` give the batch sizes, but where
        there is a `budget`.
    defaults
        Further arguments; the section's own `trainer_options` win over all.
    """
    total, at_once = getattr(params, f"{units}_per_step"), getattr(params, f"{units}_per_device_batch")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # Micro-batches by tokens are those of a whole step to the Trainer.
    at_once, per_step, rest = (1, 1, 0) if at_once is None else (at_once, *divmod(total, at_once * processes))
    if rest or not per_step:
        raise UserError(
            f"params.yaml: {section}.{units}_per_step: {total} is no multiple of "
            f"{section}.{units}_per_device_batch={at_once} times {processes} process(es)"
        )
    if params.optimizer == "adamw_8bit" and find_spec("torchao") is None:
        raise UserError(
            f"params.yaml: {section}.optimizer: adamw_8bit needs torchao, which is not installed; fix: pip install "
            "--no-deps -r requirements/torchao.txt"
        )
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": per_step,
        "learning_rate": params.learning_rate,
        "num_train_epochs": params.epochs,
        "max_steps": params.max_steps,
        "lr_scheduler_type": params.schedule,
        "warmup_steps": params.warmup_ratio,
        "weight_decay": params.weight_decay,
        "optim": OPTIMIZERS[params.optimizer],
        # For weights in bfloat16, whose neighbours are too far apart for a step; float32 weights are rounded as ever.
        "optim_args": "bf16_stochastic_round=True" if params.optimizer == "adamw_8bit" else None,
        "max_grad_norm": params.max_grad_norm,
        "bf16": params.autocast == "bfloat16",
        "gradient_checkpointing": params.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": params.save_steps,
        "save_total_limit": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Without it several processes on a machine that has no GPU would not know of each other.
        "use_cpu": processes > 1 and not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,
        "report_to": [],
        "seed": seed,
        "data_seed": seed,
    }
    try:
        return TrainingArguments(**(settings | defaults | params.trainer_options))
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: {section}.trainer_options: {str(error).splitlines()[0]}") from None


def budget(params: OptimizerParams, units: str) -> Budget | None:
    """Micro-batches by tokens, where `params` names a number."""
    tokens = params.tokens_per_device_batch
    return None if tokens is None else Budget(getattr(params, f"{units}_per_step"), tokens)
