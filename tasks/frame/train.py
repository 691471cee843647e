"""What every node that trains shares: resuming from a checkpoint, publishing weights and curves."""

import pickle
import shutil
from pathlib import Path

from transformers import PrinterCallback, Trainer

from larpo.errors import UserError, one_line
from larpo.models import remote_code
from larpo.training.curves import LiveMetrics
from larpo.workspace.git import git_state
from larpo.workspace.progress import say
from tasks.frame.files import is_whole_checkpoint
from tasks.frame.node import Node


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
    trainer.add_callback(LiveMetrics(node.scratch / "live", node.stage, say))
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
    remote_code.settle(weights, *node.checkpoints.values())
    shutil.copytree(node.scratch / "live", curves)
