"""What every node that trains shares: arguments, curves, resuming from a checkpoint, publishing weights."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import torch
from dvclive import Live
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from larpo.config.sections import OptimizerParams
from larpo.errors import UserError, one_line
from larpo.models import remote_code
from larpo.workspace.git import git_state
from tasks.frame.files import is_whole_checkpoint
from tasks.frame.node import Node, say

LOGGED = ("loss", "grad_norm", "learning_rate", "reward_accuracy", "margin")


class LiveMetrics(TrainerCallback):
    """Writes the training curves through DVCLive.

    The Trainer's own history is part of its checkpoints, so after a resume the curves are written
    again from it: they hold every step once, also those that a kill undid.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.live = Live(str(self.folder), save_dvc_exp=False, dvcyaml=None, monitor_system=False)
        for logs in state.log_history:
            self._write(logs, logs["step"])

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        self._write(logs, state.global_step)
        if "loss" in logs:
            ordered = f", pairs in order {logs['reward_accuracy']:.2f}" if "reward_accuracy" in logs else ""
            say(
                f"{self.name}: step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.4f}{ordered}, "
                f"gradient norm {float(logs['grad_norm']):.2f}"
            )

    def _write(self, logs: dict, step: int) -> None:
        values = {name: float(logs[name]) for name in LOGGED if name in logs}
        if values:
            self.live.step = step
            for name, value in values.items():
                self.live.log_metric(name, value, timestamp=False)
            self.live.make_summary()

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.live.make_summary()


def training_arguments(
    params: OptimizerParams, section: str, units: str, folder: Path, seed: int, **defaults: object
) -> TrainingArguments:
    """Our parameters as `transformers.TrainingArguments`.

    Parameters
    ----------
    section
        Where `params` stands in params.yaml, for errors.
    units
        What is trained on: its fields `UNITS_per_step` and `UNITS_per_device_batch` give the batch sizes.
    defaults
        Further arguments; the section's own `trainer_options` win over all.
    """
    total, at_once = getattr(params, f"{units}_per_step"), getattr(params, f"{units}_per_device_batch")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    per_step, rest = divmod(total, at_once * processes)
    if rest or not per_step:
        raise UserError(
            f"params.yaml: {section}.{units}_per_step: {total} is no multiple of "
            f"{section}.{units}_per_device_batch={at_once} times {processes} process(es)"
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


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that neither a kill nor a power cut left half-written; half-written ones are removed.

    The Trainer writes trainer_state.json last, and removes the checkpoint before only then.
    """
    complete = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1])):
        if is_whole_checkpoint(path):
            complete = path
        else:
            shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too
    return complete


def resume(trainer: Trainer, last: Path | None) -> None:
    """Train, from a checkpoint in scratch where there is one. Its optimizer, schedule and random state are pickles:
    transformers reads them as data (`weights_only`), and one that holds anything else is refused here."""
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{last}: holds more than numbers, or is broken ({one_line(error)[:160]}); nothing of it was run: remove "
            "the folder and start the node again"
        ) from None


def check_commit() -> None:
    """DVCLive asks Git for the commit; without one its own error would come after the training."""
    git = git_state()
    if git["dirty"] is not None and git["commit"] is None:
        raise UserError(".git: no commit yet, and DVCLive, which writes the curves, needs one; fix: git commit")


def run(node: Node, trainer: Trainer, weights: Path, curves: Path) -> None:
    """Train, from the last checkpoint in scratch where there is one; write the folders `weights` and `curves`, which
    are places in the node's scratch (`Node.out`)."""
    trainer.add_callback(LiveMetrics(node.scratch / "live", node.stage))
    trainer.remove_callback(PrinterCallback)  # LiveMetrics says the same on one line
    last = last_complete_checkpoint(Path(trainer.args.output_dir))
    if last and node.leads:
        say(f"{node.stage}: resuming from {last.name}")
    resume(trainer, last)
    trainer.save_model(str(weights))  # gathers the shards of all processes
    if not node.leads:
        return
    # A pickle of the settings, which the manifest already holds as text.
    (weights / "training_args.bin").unlink(missing_ok=True)
    remote_code.settle(weights)
    shutil.copytree(node.scratch / "live", curves)
