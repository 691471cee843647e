"""What sections that train have in common: so many examples in memory at once, or so many tokens; optimizers."""

from typing import Any

from pydantic import Field, model_validator

from larpo.errors import ParameterError

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",  # on the CPU too
    "adamw_8bit": "adamw_torch_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""Names in params.yaml → transformers' names."""


def tokens_field(number: str) -> Any:
    """A limit in tokens, in place of the key `number`. Records of runs without one do not speak of it."""
    return Field(
        None,
        ge=1,
        description=f"tokens in memory at once, in place of `{number}`; whatever has more stands alone",
        exclude_if=lambda given: given is None,
    )


def one_size(number: str, tokens: str, default: int) -> Any:
    """What is in memory at once is a number of examples or of tokens; `default` examples where neither is given."""

    def check(cls: type, raw: Any) -> Any:
        if not isinstance(raw, dict) or (raw.get(number) is None and raw.get(tokens) is not None):
            return raw
        if raw.get(tokens) is not None:
            raise ParameterError(tokens, f"{raw[tokens]} beside {number}={raw[number]}; expected one, the other null")
        return raw if raw.get(number) is not None else raw | {number: default}

    return model_validator(mode="before")(classmethod(check))
