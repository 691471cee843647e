"""Node `train@s`: θ_s ← θ_s − lr · ∇ L_rank over the lists (Algorithm 1, lines 4 and 5).

Killed in the middle, it resumes from the last checkpoint in scratch and ends with the same weights.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from dvclive import Live
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from larpo import tables
from larpo.checkpoints import load_model, load_tokenizer
from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.objectives import build
from larpo.params import TrainParams
from larpo.trainer import (
    ListTrainer,
    StopOnLimits,
    TrainingList,
    check_step0,
    first_batch_loss,
)
from tasks.launch import launched
from tasks.node import Node, command, git_state, load_params, say
from tasks.training_data import read_lists, response_lists

LOGGED = ("loss", "grad_norm", "learning_rate", "reward_accuracy", "margin")


class LiveMetrics(TrainerCallback):
    """Writes the training curves through DVCLive.

    The Trainer's own history is part of its checkpoints, so after a resume the curves are written
    again from it: they hold every step once, also those that a kill undid.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.live = Live(str(self.folder), save_dvc_exp=False, dvcyaml=None, monitor_system=False)
        for logs in state.log_history:
            self._write(logs, logs["step"])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self._write(logs or {}, state.global_step)
        if "loss" in (logs or {}):
            say(
                f"train: step {state.global_step}/{state.max_steps}, loss {logs['loss']:.4f}, "
                f"pairs in order {logs['reward_accuracy']:.2f}, gradient norm {logs['grad_norm']:.2f}"
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


def training_arguments(params: TrainParams, folder: Path, seed: int) -> TrainingArguments:
    """Our parameters as `transformers.TrainingArguments`; `train.trainer_options` win."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    per_step, rest = divmod(params.lists_per_step, params.lists_per_device_batch * processes)
    if rest or not per_step:
        raise UserError(
            f"params.yaml: train.lists_per_step: {params.lists_per_step} is no multiple of "
            f"train.lists_per_device_batch={params.lists_per_device_batch} times {processes} process(es)"
        )
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": params.lists_per_device_batch,
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
        return TrainingArguments(**(settings | params.trainer_options))
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: train.trainer_options: {str(error).splitlines()[0]}") from None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that a kill did not leave half-written; half-written ones are removed.

    The Trainer writes trainer_state.json last, and removes the checkpoint before only then.
    """
    complete = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1])):
        try:
            json.loads((path / "trainer_state.json").read_text())
            complete = path
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too
    return complete


def read_training_lists(lists_path: str, candidates_path: str, reference_path: str) -> list[TrainingList]:
    """Lists with rewards and reference log-probabilities; refuses missing and mismatched reference rows."""
    frame = read_lists(lists_path, candidates_path)
    reference = tables.read("reference", reference_path)
    joined = frame.merge(reference, on="response_id", how="left", validate="many_to_one")
    missing = joined["reference_logp"].isna().to_numpy()
    if missing.any():
        raise UserError(
            f"{reference_path}: no row for response {joined['response_id'][int(missing.argmax())]} and "
            f"{int(missing.sum()) - 1} others of {lists_path}; run `dvc repro --force` on the reference node"
        )
    other = (joined["n_tokens"] != joined["token_ids"].map(len)).to_numpy()
    if other.any():
        raise UserError(
            f"{reference_path}: response {joined['response_id'][int(other.argmax())]} has another length than in "
            f"{candidates_path}; run `dvc repro --force` on the reference node"
        )
    groups = joined.groupby("prompt_id", sort=False)
    return [
        TrainingList(tokens, group["reward"].tolist(), group["reference_logp"].tolist())
        for tokens, (_, group) in zip(response_lists(frame), groups, strict=True)
    ]


def main(iteration: str) -> None:
    """Write data/policy/ITERATION and the training curves in data/train/ITERATION."""
    params = load_params()
    if launched(params.train.launch, "tasks.train", iteration):
        return
    git = git_state()
    if git["dirty"] is not None and git["commit"] is None:
        raise UserError(".git: no commit yet, and DVCLive, which writes the curves, needs one; fix: git commit")
    previous = params.iterations[iteration].previous
    policy = f"data/policy/{previous}"
    paths = [f"data/{kind}/{iteration}.parquet" for kind in ("lists", "candidates", "reference")]
    out, curves = f"data/policy/{iteration}", f"data/train/{iteration}"
    seed = seed_of(params.seed, "train", iteration)
    with Node(
        "train", iteration, params, uses=["seed", "train", "reference", f"iterations.{iteration}"],
        inputs=[policy, *paths], outputs=[out, curves],
        manifest=f"data/train/{iteration}.manifest.json", seed=seed,
    ) as node:  # fmt: skip
        lists = read_training_lists(*paths)
        objective = build(params.train.objective, **params.train.objective_options)
        args = training_arguments(params.train, node.scratch / "checkpoints", seed)
        tokenizer = load_tokenizer(policy)
        set_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        model = load_model(policy, params.policy.dtype)
        # The paper trains without dropout's noise in the log-ratios; step 0 is exact only so.
        model.eval()
        step0 = node.scratch / "step0.json"
        last = last_complete_checkpoint(Path(args.output_dir))
        if node.leads and not step0.exists():
            first = lists[: params.train.lists_per_device_batch]
            loss, expected = first_batch_loss(model.to(args.device), first, objective)
            if params.reference.model == "previous" or previous == "0":
                check_step0(loss, expected, params.policy.dtype)
            step0.write_text(json.dumps({"step0_loss": loss, "step0_expected": expected}))
        trainer = ListTrainer(
            model, args, lists, objective,
            processing_class=tokenizer,
            callbacks=[LiveMetrics(node.scratch / "live"), StopOnLimits()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # LiveMetrics says the same on one line
        if last and node.leads:
            say(f"{node.stage}: resuming from {last.name}")
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        weights = node.out(out)
        trainer.save_model(str(weights))  # gathers the shards of all processes
        if not node.leads:
            return
        # A pickle of the settings, which the manifest already holds as text.
        (weights / "training_args.bin").unlink(missing_ok=True)
        shutil.copytree(node.scratch / "live", node.out(curves))
        node.note(**json.loads(step0.read_text()), steps=trainer.state.global_step, lists=len(lists))
        node.rows(read=len(lists), written=len(lists))


if __name__ == "__main__":
    command(main)
