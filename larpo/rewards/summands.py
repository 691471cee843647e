"""What a sum of rewards adds up, as `score.options` names it."""

from collections.abc import Collection
from typing import Any

from pydantic import Field, ValidationError

from larpo.config.sections import Section
from larpo.errors import ParameterError, at, first_error, nearest
from larpo.registry import is_own


class Part(Section):
    reward: str
    weight: float = 1.0
    options: dict[str, Any] = {}


class Options(Section):
    parts: list[Part] = Field(min_length=1)


def parse(options: dict[str, Any], rewards: Collection[str]) -> list[Part]:
    """`score.options` of a sum of `rewards`; one line for a wrong one."""
    try:
        parts = Options.model_validate(options).parts
    except ValidationError as error:
        with at("score.options"):
            raise first_error(error, list(Options.model_fields)) from None
    known = [name for name in rewards if name != "sum"]
    for part in parts:
        if part.reward not in known and not is_own(part.reward):
            raise ParameterError(
                "score.options.parts", f"{part.reward!r} cannot be summed{nearest(part.reward, known)}"
            )
    return parts
