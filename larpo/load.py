"""Reading params.yaml: its shape (`larpo.config`), then what each room of the method knows of its own parameters."""

from pathlib import Path

from larpo.benchmarks.check import check as benchmarks
from larpo.config.overlays import read_sections
from larpo.config.params import Params, parse_params
from larpo.engines.check import check as engines
from larpo.errors import UserError, at
from larpo.lists.check import check as lists
from larpo.models.check import check as models
from larpo.objectives.check import check as objectives
from larpo.rewards.check import check as rewards
from larpo.sources.check import check as sources
from larpo.training.check import check as training

ROOMS = (sources, models, engines, rewards, lists, objectives, training, benchmarks)
"""`check(params)` of each room: ParameterError for a name, a value or a combination that cannot work."""


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file, before a model or a library is loaded.

    Raises
    ------
    UserError
        The file is missing, not YAML, or a key or value is wrong.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; run from the project's folder, where params.yaml lies")
    params = parse_params(read_sections(path), str(path))
    check_params(params, str(path))
    return params


def check_params(params: Params, file: str = "params.yaml") -> None:
    """Refuse names that do not exist, files that are missing and recipes that ask for more than there is; `file` is
    named by the error."""
    with at(file=file):
        for check in ROOMS:
            check(params)
