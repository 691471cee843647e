"""What lists may be asked to hold."""

from contextlib import suppress

from larpo.config.params import Params
from larpo.errors import ParameterError, at
from larpo.lists.recipes import RECIPES, responses_needed
from larpo.objectives import build
from larpo.registry import OwnCodeError


def check(params: Params) -> None:
    """Refuse unknown recipes, and recipes that ask for more, or for another number, than their sources have."""
    lists, k = params.lists, params.sample.responses
    RECIPES.check(lists.recipe, "lists.recipe")
    over_several = any(params.memory_window(s) != [s] for s in params.iterations)
    if lists.negatives == "related" and params.prompts.draw == "fresh" and over_several:
        raise ParameterError(
            "lists.negatives",
            "related compares the prompts of one iteration; set lists.memory=current or prompts.draw=same, found "
            f"memory {lists.memory!r}",
        )
    own_pools = lists.positive != "ranked" or lists.negatives != "own"
    for name, asked in (("matched", lists.matched), ("negative_temperature", lists.negative_temperature is not None)):
        if asked and not own_pools:
            raise ParameterError(f"lists.{name}", "needs negatives that are incorrect; set lists.positive=correct")
    sampled_at = {t for s in params.iterations.values() for t in s.temperatures}
    if lists.negative_temperature is not None and lists.negative_temperature not in sampled_at:
        raise ParameterError(
            "lists.negative_temperature",
            f"expected a temperature of `iterations`, {sorted(sampled_at)}, found {lists.negative_temperature:g}",
        )
    if lists.positive == "gold" and not params.sample.gold:
        raise ParameterError(
            "lists.positive", "gold needs the prompts' solutions among the responses; set sample.gold=true"
        )
    try:
        top, bottom = RECIPES.load(lists.recipe).counts(lists)
    except OwnCodeError:
        return  # the node that builds lists looks again
    if lists.positive == "gold" and (top or 1) > 1:
        raise ParameterError("lists.top", f"{top}, but a prompt has one gold solution; expected 1 with positive=gold")
    if lists.negatives != "own" and bottom is None:
        raise ParameterError(
            "lists.recipe",
            f"{lists.recipe} takes all the rest, but other prompts' responses are without number; with negatives="
            f"{lists.negatives} expected a recipe that counts its negatives, such as top_bottom",
        )
    if (needed := responses_needed(lists)) > k:
        raise ParameterError(
            "lists.recipe",
            f"{lists.recipe} with top={lists.top}, bottom={lists.bottom} needs {needed} responses per prompt, "
            f"sample.responses is {k}; raise sample.responses or take fewer",
        )
    _check_pairs(params, top, bottom)


def _check_pairs(params: Params, top: int | None, bottom: int | None) -> None:
    """Refuse an objective of two responses on lists that have more: found only where training begins, it would cost
    all the sampling before it."""
    size = None if None in (top, bottom) else top + bottom
    if size == 2 or (size is None and params.sample.responses + params.sample.gold == 2):
        return
    with at("train"), suppress(OwnCodeError):
        objective = build(params.train.objective, **params.train.objective_options)
        if objective.takes_pairs:
            found = f"lists of {size}" if size else "lists of as many as there are"
            raise ParameterError(
                "objective",
                f"{params.train.objective} takes 2 responses per list, but lists.recipe={params.lists.recipe} makes "
                f"{found}; set lists.recipe=best_worst, such as `-S train.objective={params.train.objective} -S "
                "lists.recipe=best_worst`",
            )
