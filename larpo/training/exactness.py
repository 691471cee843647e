"""Is the model that is trained the one that was sampled? On the run's own checkpoint and lists: log-probabilities as
training computes them against one response at a time through the attention that the model's authors wrote."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from larpo.errors import UserError
from larpo.training.forward import (
    Way,
    authors,
    difference,
    one_at_a_time,
    quiet,
    token_logps,
    tolerance,
    unwrapped,
    way_of,
)
from larpo.training.packing import ResponseList, pack

LISTS, RESPONSES = 2, 2  # that are compared: the longest responses of the lists with the longest prompts


def check_exact(model: PreTrainedModel, lists: list[ResponseList], where: str, autocast: bool = False) -> dict:
    """Compare on a few lists of the run; the longest ones, for windows begin to matter there.

    Parameters
    ----------
    where
        The node, for the error.
    autocast
        Compute in bfloat16, as training will.

    Returns
    -------
    What the manifest records: how the model is computed, and the largest difference in nats per token.

    Raises
    ------
    UserError
        It is beyond the tolerance of the dtype.
    """
    few = sorted(lists, key=lambda entry: (-len(entry.prompt_ids), -max(map(len, entry.response_ids))))[:LISTS]
    few = [ResponseList(x.prompt_ids, sorted(x.response_ids, key=len, reverse=True)[:RESPONSES]) for x in few]
    packed, plain, training = pack(few).to(unwrapped(model).device), unwrapped(model), model.training
    model.eval()
    with torch.no_grad(), torch.autocast(plain.device.type, torch.bfloat16, enabled=autocast), quiet():
        way, allowed = way_of(model), tolerance(plain)
        ours = token_logps(model, packed)
        with authors(plain) as other:
            reference = one_at_a_time(model if other is plain else other, packed)
    model.train(training)
    apart = difference(ours, reference, packed)
    if not apart <= allowed:
        raise UserError(
            f"{where}: the log-probabilities of training differ by {apart:.2g} nats per token from one response at a "
            f"time through the attention of the model's authors, expected at most {allowed:g} ({way}); this model "
            "cannot be trained here, take another policy.model"
        )
    return {"computed": summary(way), "exactness": apart}


def summary(way: Way) -> str:
    """`way` without its own measurement, which `exactness` stands for."""
    return str(replace(way, difference=0.0)).rpartition(",")[0]
