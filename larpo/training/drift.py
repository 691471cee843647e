"""Did the sampler compute the model that is trained? Its log-probabilities, which the engine reported, against the
trainer's, of the same tokens under the same weights."""

from dataclasses import dataclass

import pandas as pd

from larpo.config.params import Params
from larpo.errors import UserError

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Nats per token of a response, by the coarser of the engine's and the trainer's dtype."""
SHARE = 0.01
"""Of the responses, that may lie beyond the tolerance: a short one rounds further than most."""
FAR = 10
"""Tolerances that no response may lie beyond."""


@dataclass(frozen=True)
class Drift:
    """|Δ| of a response's summed log-probability, divided by its tokens: nats per token."""

    responses: int
    mean: float
    largest: float
    beyond: float  # share of the responses beyond the tolerance
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.mean:.1e} nats per token in the mean, {self.largest:.1e} at most, {self.beyond:.1%} of "
            f"{self.responses} responses beyond {self.tolerance:g}"
        )

    @property
    def bounded(self) -> bool:
        return self.beyond <= SHARE and self.largest <= FAR * self.tolerance

    def check(self, where: str) -> None:
        """Raises UserError, one line that begins with `where`, beyond SHARE of the responses or FAR tolerances."""
        if not self.bounded:
            raise UserError(
                f"{where}: the sampler's log-probabilities are not the trainer's: {self}; expected at most {SHARE:.0%} "
                f"beyond it and none beyond {FAR * self.tolerance:g}: the engine computes another model than is "
                "trained; change engine.dtype or the attention in engine.options and sample again, or, where this is "
                "rounding (a quantised engine), raise reference.drift_tolerance"
            )


def from_sampler(params: Params, iteration: str, rows: pd.DataFrame) -> Drift | str:
    """The drift of this iteration's responses to their own prompts; in words why there is none to measure.

    Parameters
    ----------
    rows
        Of lists (`larpo.lists.read.read_lists`), with reference_logp and n_tokens.
    """
    sampler, reference = params.iterations[iteration].previous, params.reference_policy(iteration)
    if reference != sampler:
        return f"not measured, policy {sampler} sampled and the reference is policy {reference}"
    # Others were sampled by another policy, or stand behind another prompt.
    own = rows[(rows["iteration"] == int(iteration)) & (rows["answers"] == rows["prompt_id"]) & rows["logp"].notna()]
    if own.empty:
        return "not measured, the lists hold no response of this iteration with the engine's log-probability"
    allowed = params.reference.drift_tolerance or max(
        TOLERANCE[d] for d in (params.engine.dtype, params.training_dtype)
    )
    apart = (own["logp"] - own["reference_logp"]).abs() / own["n_tokens"]
    return Drift(len(own), float(apart.mean()), float(apart.max()), float((apart > allowed).mean()), allowed)
