"""Objectives: from the log-probabilities of ranked responses to one loss per list.

    loss = build("listmle", beta=0.1)(ListBatch(policy_logps, reference_logps, lengths, rewards, mask))

One list is the responses to one prompt in falling reward order, y_1 the best. `ranking` holds the paper's
four, `baselines` the methods that it is compared with. Equal rewards state no preference.

A new objective is one function `loss(batch, *, ...) -> (B,)` and one line here (docs/extending.md). The annotations of
its keyword parameters say which settings it takes.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from larpo.errors import at, first_error, unknown
from larpo.objectives.batch import ListBatch
from larpo.registry import Registry

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

OBJECTIVES = Registry(
    "objective",
    {
        "pairwise": "larpo.objectives.ranking:pairwise",
        "dpo": "larpo.objectives.ranking:pairwise",
        "contrastive": "larpo.objectives.ranking:contrastive",
        "lambdarank": "larpo.objectives.ranking:lambdarank",
        "listmle": "larpo.objectives.ranking:listmle",
        "ipo": "larpo.objectives.baselines:ipo",
        "slic_hf": "larpo.objectives.baselines:slic_hf",
        "rrhf": "larpo.objectives.baselines:rrhf",
        "cpo": "larpo.objectives.baselines:cpo",
        "kto": "larpo.objectives.baselines:kto",
        "rdpo": "larpo.objectives.baselines:rdpo",
        "simpo": "larpo.objectives.baselines:simpo",
    },
)


@dataclass(frozen=True)
class Objective:
    """A loss with its settings bound. Made by `build`."""

    loss: Callable[..., Tensor]
    params: dict[str, Any]

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def needs_mismatched(self) -> bool:
        """Whether the loss reads `ListBatch.mismatched`; such a function says so by an attribute of that name."""
        return getattr(self.loss, "needs_mismatched", False)

    @property
    def takes_pairs(self) -> bool:
        """Whether every list has to have two responses; such a function says so by an attribute of that name."""
        return getattr(self.loss, "takes_pairs", False)

    def __call__(self, batch: ListBatch) -> Tensor:
        """Losses, (B,), in the dtype of the log-probabilities; not averaged."""
        return self.loss(batch, **self.params)

    def at_reference(self, batch: ListBatch) -> Tensor:
        """The losses (B,) that this batch has where policy and reference agree, as at step 0; without a gradient.

        The policy's log-probabilities are not looked at, so that training can check its first forward pass
        against this: log 2 for a pair, log m (contrastive), C(m,2) log 2 (lambdarank), log m! (listmle),
        (1/2τ)² (ipo), less where rewards tie. An objective without a reference (slic_hf, rrhf, cpo, simpo) has no
        such constant; its value is the loss of the reference's own log-probabilities.
        """
        return self(batch.at_reference()).detach()


def build(name: str, **params: Any) -> Objective:
    """The objective of that name with these settings, its own defaults for the others.

    Raises
    ------
    ParameterError
        An unknown name, setting or value; keys are those of the section `train`.
    """
    loss = OBJECTIVES.load(name, "objective")
    accepted = inspect.signature(loss).parameters.values()
    values = {p.name: p.default for p in accepted if p.kind is p.KEYWORD_ONLY}
    types = get_type_hints(loss, include_extras=True)
    for key, value in params.items():
        with at("objective_options"):
            if key not in values:
                raise unknown("", key, list(values))
            try:
                values[key] = TypeAdapter(types[key]).validate_python(value)
            except ValidationError as error:
                with at(key):
                    raise first_error(error) from None
    return Objective(loss, values)
