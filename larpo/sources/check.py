"""What prompts and worked examples may be asked for."""

from larpo.config.params import Params
from larpo.errors import ParameterError
from larpo.sources.prompts import SOURCES

SHIPPED = "You are a calculator."
"""The system message of the params.yaml that ships with the project, which speaks of its own problems."""


def check(params: Params) -> None:
    """Refuse unknown sources, a generator without a number, missing solutions, parts that are not disjoint, and the
    system message of other problems than those asked for."""
    prompts = params.prompts
    SOURCES.check(prompts.source, "prompts.source")
    for key, section in (("prompts", prompts), *((f"sft.{name}.data", sft.data) for name, sft in params.sft.items())):
        if section.source == "dataset" and section.system == SHIPPED:
            raise ParameterError(
                f"{key}.system",
                f"{SHIPPED!r} is written for the problems that ship with the project, and would stand before each "
                f"prompt of {section.dataset}; say what suits your data, or nothing: `-S {key}.system=null`",
            )
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
