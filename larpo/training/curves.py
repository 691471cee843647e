"""The training curves: every optimizer step once, whatever was killed and resumed."""

import shutil
from collections.abc import Callable
from pathlib import Path

from dvclive import Live
from transformers import TrainerCallback

LOGGED = ("loss", "grad_norm", "learning_rate", "reward_accuracy", "margin")


class LiveMetrics(TrainerCallback):
    """Writes the training curves through DVCLive.

    The Trainer's own history is part of its checkpoints, so after a resume the curves are written
    again from it: they hold every step once, also those that a kill undid.
    """

    def __init__(self, folder: Path, name: str, say: Callable[[str], None]):
        self.folder, self.name, self.say = folder, name, say

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
            self.say(
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
