"""Objectives by name: `register` adds one, `build` binds its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from larpo.errors import at, first_error, unknown
from larpo.objectives.batch import ListBatch

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss with its parameters bound. Made by `build`."""

    name: str
    params: dict[str, Any]
    loss: Loss
    reference_value: Loss
    needs_mismatched: bool = False

    def __call__(self, batch: ListBatch) -> Tensor:
        """Losses, (B,), in the dtype of the log-probabilities; not averaged."""
        return self.loss(batch, **self.params)

    def at_reference(self, batch: ListBatch) -> Tensor:
        """The losses (B,) that this batch has where policy and reference agree, as at step 0.

        The policy's log-probabilities are not looked at, so that training can check its first forward pass
        against this: log 2 for a pair, log m (contrastive), C(m,2) log 2 (lambdarank), log m! (listmle),
        (1/2τ)² (ipo), less where rewards tie. An objective without a reference (slic_hf, rrhf, cpo, simpo) has no
        such constant; its value is the loss of the reference's own log-probabilities. Holds no gradient.
        """
        return self.reference_value(batch.at_reference(), **self.params).to(batch.dtype).detach()


_REGISTRY: dict[str, Objective] = {}


def register(*names: str, at_reference: Loss | None = None, needs_mismatched: bool = False) -> Callable[[Loss], Loss]:
    """Add `loss(batch, *, ...) -> (B,)` under its name and aliases; keyword parameters become its settings.

    The annotation of each parameter says which values it takes (`Positive`, `Literal[...]`).
    `at_reference` has the same signature and returns in closed form what `Objective.at_reference` promises;
    None where there is no closed form: then the loss itself is taken, with the reference as the policy.
    `needs_mismatched` says that the loss reads `ListBatch.mismatched`.
    """

    def add(loss: Loss) -> Loss:
        for name in names:
            _REGISTRY[name] = Objective(names[0], {}, loss, at_reference or loss, needs_mismatched)
        return loss

    return add


def build(name: str, **params: Any) -> Objective:
    """The objective called `name`. Raises UserError for an unknown name, parameter or value."""
    if name not in _REGISTRY:
        raise unknown("objective", name, list(_REGISTRY))
    entry = _REGISTRY[name]
    accepted = inspect.signature(entry.loss).parameters.values()
    values = {p.name: p.default for p in accepted if p.kind is p.KEYWORD_ONLY}
    types = get_type_hints(entry.loss, include_extras=True)
    for key, value in params.items():
        if key not in values:
            raise unknown(f"objective_options.{key}", key, list(values))
        try:
            values[key] = TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            with at(f"objective_options.{key}"):
                raise first_error(error) from None
    return replace(entry, params=values)
