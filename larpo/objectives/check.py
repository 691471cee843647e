"""What the section `train` may ask of an objective."""

from larpo.config.params import Params
from larpo.errors import ParameterError, at
from larpo.objectives import build
from larpo.registry import OwnCodeError


def check(params: Params) -> None:
    """Refuse unknown objectives and settings, and one whose inputs are not made."""
    with at("train"):
        try:
            objective = build(params.train.objective, **params.train.objective_options)
        except OwnCodeError:
            return  # the node that trains looks again
    if objective.needs_mismatched and params.train.tokens_per_device_batch is not None:
        raise ParameterError(
            "train.tokens_per_device_batch",
            f"{objective.name}'s reference point is a mean over the lists in memory at once; expected null, and a "
            "number in train.lists_per_device_batch",
        )
    if objective.needs_mismatched and not params.reference.mismatched:
        raise ParameterError(
            "train.objective",
            f"{objective.name} needs a mismatched response per list, found reference.mismatched: false; set "
            "`reference.mismatched: true`",
        )
