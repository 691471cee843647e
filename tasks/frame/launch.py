"""A node in several processes: the command starts itself again through Accelerate's launcher.

`train.launch: configs/fsdp-8x80gb.yaml` makes `python -m tasks.train 1` what `accelerate launch --config_file
configs/fsdp-8x80gb.yaml -m tasks.train 1` is, so that dvc.yaml has one command for one GPU and for many.
"""

import os

import torch
import typer
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from larpo.errors import UserError
from larpo.workspace.processes import end_with_parent


class Processes:
    """Of a node that shares its parts with others: which of them this one makes, and on what device."""

    def __init__(self):
        self.rank, self.count = (int(os.environ.get(name, n)) for name, n in (("RANK", "0"), ("WORLD_SIZE", "1")))
        # Accelerate's launcher says so to its own Accelerator, and PartialState has to be told.
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        self.state = PartialState(cpu=on_cpu) if self.count > 1 else None

    @property
    def device(self) -> torch.device:
        if self.state is not None:
            return self.state.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wait(self) -> None:
        """Until all have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()


def launched(config: str | None, module: str, *arguments: str) -> bool:
    """Run `python -m MODULE ARGUMENTS` in the processes that an Accelerate configuration describes.

    Returns
    -------
    True once they are done; False, and nothing is started, where there is no configuration or where this process is
    itself one of several.

    Raises
    ------
    UserError
        The configuration is not what Accelerate expects.
    typer.Exit
        A process failed; with its exit status, so that bad input is told from a crash here too.
    """
    if config is None:
        return False
    if "LOCAL_RANK" in os.environ:
        # Not even kill -9 of the launcher leaves processes behind that a second run would meet in its scratch.
        end_with_parent()
        return False
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(["--config_file", config, "--module", module, *arguments]))
    except ChildFailedError as error:
        raise typer.Exit(error.get_first_failure()[1].exitcode) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"params.yaml: train.launch: {config}: {' '.join(str(error).split())[:200]}") from None
    return True
