"""What prompts and worked examples may be asked for."""

from __future__ import annotations

from larpo.config.params import Params
from larpo.errors import ParameterError
from larpo.sources.prompts import SOURCES


def check(params: Params) -> None:
    """Refuse unknown sources, a generator without a number, missing solutions, and parts that are not disjoint."""
    prompts = params.prompts
    SOURCES.check(prompts.source, "prompts.source")
    if params.sample.gold and prompts.source == "dataset" and prompts.solution_field is None:
        raise ParameterError("sample.gold", "the prompts have no solutions; set prompts.solution_field")
    for name, sft in params.sft.items():
        SOURCES.check(sft.data.source, f"sft.{name}.data.source")
        if sft.examples is None and sft.data.source == "reasoning_gym":
            raise ParameterError(f"sft.{name}.examples", "a generator has no end; expected a number, found null")
        # Both parts are chosen by the same hash of the text, so equal shares mean equal parts.
        if sft.data.held_out != prompts.held_out:
            raise ParameterError(
                f"sft.{name}.data.held_out",
                f"expected that of prompts, {prompts.held_out:g}, or evaluation prompts would be trained on; found "
                f"{sft.data.held_out:g}",
            )
    train = params.reward.train
    if train and train.data.source == "sums" and train.held_out != prompts.held_out:
        raise ParameterError(
            "reward.train.held_out",
            f"expected that of prompts, {prompts.held_out:g}, or the reward would be trained on evaluation prompts; "
            f"found {train.held_out:g}",
        )
