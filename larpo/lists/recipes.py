"""Candidate lists Y_x (Section 3.3): from every scored response of a prompt to the ordered list.

A recipe is data: how many positives from the top, how many negatives from the bottom. `lists.positive` and
`lists.negatives` say where they come from (docs/lists.md); negatives of other prompts are `larpo.lists.negatives`.
Everything here works on whole tables at once; no Python loop runs over rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from larpo.config.sections import ListsParams
from larpo.hashing import seed_of
from larpo.lists.negatives import Related, draw
from larpo.lists.pool import BATCH, Pool
from larpo.registry import OwnCodeError, Registry

MARGIN = 1.0
"""A response to another prompt is worth so much less than the list's last positive: what a rule takes from a wrong
answer, whose rank it shares."""


@dataclass(frozen=True)
class Recipe:
    """How many of a prompt's ranked responses enter its list.

    `top` positives from the best downwards, `bottom` negatives from the worst upwards: a number, the parameter of that
    name, or all that the other leaves (`half`: the upper half; of a separate pool: all of it). `at_random` draws
    within the correct and the incorrect ones instead of ranking by reward.
    """

    top: Literal["top", "half"] | int
    bottom: Literal["bottom", "rest"] | int
    at_random: bool = False

    def counts(self, params: ListsParams) -> tuple[int | None, int | None]:
        """(positives, negatives); None where no number is named."""
        top = {"top": params.top, "half": None}.get(self.top, self.top)
        return top, {"bottom": params.bottom, "rest": None}.get(self.bottom, self.bottom)


RECIPES = Registry(
    "recipe",
    {
        "top_rest": Recipe("top", "rest"),  # Table 3: contrastive, top-1 against the rest
        "top_bottom": Recipe(
            "top", "bottom"
        ),  # Table 2: contrastive top-1, bottom-3; LambdaRank, ListMLE top-2, bottom-2
        "best_worst": Recipe(1, 1),  # Table 4: iterative DPO on the best and the worst of the merged list
        "random_correct_incorrect": Recipe(1, 1, at_random=True),  # Table 6: one of each, drawn at random
        "all": Recipe("half", "rest"),  # every candidate, ranked
    },
)


def positives_of(params: ListsParams) -> str:
    """`lists.positive`; a recipe that draws correct against incorrect ranks neither."""
    return "correct" if RECIPES.load(params.recipe).at_random and params.positive == "ranked" else params.positive


def counts_of(params: ListsParams) -> tuple[int | None, int | None]:
    """(positives, negatives) of `lists.recipe`; None where it names no number, or is own code that is not run here."""
    try:
        return RECIPES.load(params.recipe, "lists.recipe").counts(params)
    except OwnCodeError:
        return None, None


def responses_needed(params: ListsParams) -> int:
    """Smallest number of sampled responses per prompt from which the recipe can make a list."""
    top, bottom = (1 if count is None else count for count in counts_of(params))
    return top * (params.positive != "gold") + bottom * (params.negatives == "own")


@dataclass(frozen=True)
class Built:
    """The lists and where every prompt without one went."""

    lists: pd.DataFrame  # a `lists` table
    dropped_responses: dict[str, int]  # reason → rows
    dropped_prompts: dict[str, int]  # reason → prompts
    cut_off: dict[str, int]  # what is odd → lists, see `cut_off`


def tie_break(response_ids: pd.Series, seed: int) -> np.ndarray:
    """(N,) uint64 keys that order responses of equal reward: a seeded hash of the id, so that neither
    position nor iteration decides a tie."""
    key = f"{seed_of('tie', seed):016x}"[:16]
    parts = [response_ids.iloc[i : i + BATCH].to_numpy(dtype=object) for i in range(0, len(response_ids), BATCH)]
    keys = [pd.util.hash_array(part, hash_key=key, categorize=False) for part in parts]
    return np.concatenate([np.empty(0, np.uint64), *keys])


def build_lists(pool: Pool, params: ListsParams, seed: int, related: Related | None = None) -> Built:
    """Order each prompt's candidates by falling reward and apply the recipe.

    Parameters
    ----------
    pool
        The responses of the memory window only (the caller picks the iterations).
    seed
        Decides ties, the random recipe and the draw of other prompts' responses.
    related
        Similarity of the prompts; needed for negatives=related.

    Returns
    -------
    Built
        `lists` sorted by prompt, then rank. A prompt makes no list, and is counted, when it has fewer positives or
        negatives than the recipe names, or when they are not apart: ranked, when all chosen rewards are equal (equal
        rewards state no preference); else, when a positive's reward is not above every negative's.
    """
    recipe, positive = RECIPES.load(params.recipe), positives_of(params)
    dropped: dict[str, int] = {}

    def keep(frame: pd.DataFrame, mask: np.ndarray | pd.Series, reason: str) -> pd.DataFrame:
        if count := int((~mask).sum()):
            dropped[reason] = count
        return frame[mask]

    frame = pool.rows
    if positive != "gold":
        frame = keep(frame, ~frame["gold"], "gold")
    if params.truncated == "drop":
        frame = keep(frame, ~frame["cut"], "truncated")
    frame = keep(frame, frame["n_tokens"] > 0, "empty")
    if positive == "correct" or (positive == "gold" and params.negatives == "own"):
        frame = keep(frame, frame["correct"].notna() | frame["gold"], "not_verifiable")
    frame = frame.assign(tie=tie_break(frame["response_id"], seed))
    if params.unique:
        # The newest of identical responses stays: its text is as likely under the current policy, and
        # its id is the one that this iteration's sampling recorded. A gold solution goes before a sample of it.
        # Their rewards differ only where the reward is not deterministic; then the best stays, whatever the seed.
        frame = _sorted(frame, ~frame["gold"], -frame["iteration"], -frame["reward"], frame["tie"])
        frame = keep(frame, ~frame.duplicated(["prompt", "tokens"]), "identical")
    order = () if recipe.at_random else (-frame["reward"],)
    frame = _sorted(frame, frame["prompt"], *order, frame["tie"])
    prompts = pool.rows["prompt"].nunique()
    if positive == "ranked" and params.negatives == "own":
        chosen, lost = _one_pool(frame, recipe, params, prompts)
    else:
        chosen, lost = _two_pools(frame, recipe, params, prompts, positive, pool.prompts, seed, related)
    chosen = chosen.assign(
        rank=chosen.groupby("prompt", sort=False).cumcount(),
        prompt_id=pd.Series(pool.prompts, dtype="str").iloc[chosen["prompt"]].array,
    )
    return Built(
        chosen[["prompt_id", "rank", "response_id", "reward", "role"]].reset_index(drop=True),
        dropped,
        {reason: count for reason, count in lost.items() if count},
        cut_off(chosen),
    )


def _sorted(frame: pd.DataFrame, *keys: pd.Series) -> pd.DataFrame:
    """Rows in rising order of the first key, then of the second, …; equal ones as they were."""
    return frame.iloc[np.lexsort([key.to_numpy() for key in reversed(keys)])]


def cut_off(chosen: pd.DataFrame) -> dict[str, int]:
    """Lists that say little but that a response was cut off: `lists_all_cut_off` hold nothing else, and in
    `lists_ranked_by_cut_off` the finished ones share one reward, and so do the cut-off ones, so that only the penalty
    (or what a rule makes of an unfinished text) tells them apart."""
    cut = chosen.groupby("prompt")["cut"]
    rewards = chosen.groupby(["prompt", "cut"])["reward"]
    apart = (rewards.max() > rewards.min()).groupby("prompt").any()
    found = {
        "lists_all_cut_off": int(cut.all().sum()),
        "lists_ranked_by_cut_off": int((cut.any() & ~cut.all() & ~apart).sum()),
    }
    return {name: count for name, count in found.items() if count}


def _one_pool(
    frame: pd.DataFrame, recipe: Recipe, params: ListsParams, prompts: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Positives and negatives are the two ends of one ranking."""
    top, bottom = recipe.counts(params)
    group = frame.groupby("prompt", sort=False)
    rank, size = group.cumcount().to_numpy(), group["response_id"].transform("size").to_numpy()
    enough = size >= responses_needed(params)
    above = (size + 1) // 2 if top is None else top
    positive, negative = rank < above, rank >= (above if bottom is None else size - bottom)
    chosen = frame.assign(role=np.where(positive, "positive", "negative"))[(positive | negative) & enough]
    rewards = chosen.groupby("prompt", sort=False)["reward"]
    apart = (rewards.transform("max") > rewards.transform("min")).to_numpy(dtype=bool)
    usable, lists = chosen["prompt"].nunique(), chosen[apart]
    return lists, {"too_few_candidates": prompts - usable, "all_rewards_equal": usable - lists["prompt"].nunique()}


def _two_pools(
    frame: pd.DataFrame,
    recipe: Recipe,
    params: ListsParams,
    prompts: int,
    positive: str,
    ids: np.ndarray,
    seed: int,
    related: Related | None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Positives and negatives come from different responses: gold, correct, incorrect, or those of other prompts."""
    top, bottom = recipe.counts(params)
    correct = (frame["correct"] == 1.0).to_numpy()
    sampled = frame[~frame["gold"]]
    best = {"gold": frame[frame["gold"]], "correct": frame[correct & ~frame["gold"]], "ranked": sampled}[positive]
    if params.matched:
        wrong_at = frame[~correct & ~frame["gold"]].groupby("prompt")["temperature"].nunique()
        everywhere = wrong_at.index[wrong_at == sampled["temperature"].nunique()]
        best = best[best["prompt"].isin(everywhere)]
    positives = _counted(best.groupby("prompt", sort=False).head(len(frame) if top is None else top), top)
    with_positives = positives["prompt"].nunique()
    if params.negatives == "own":
        wrong = frame[~correct & ~frame["gold"] & frame["prompt"].isin(positives["prompt"])]
        if params.negative_temperature is not None:
            wrong = wrong[wrong["temperature"] == params.negative_temperature]
        taken = wrong.groupby("prompt", sort=False).tail(len(frame) if bottom is None else bottom)
    else:
        floor = positives.groupby("prompt")["reward"].min() - MARGIN
        taken = draw(positives, sampled, bottom, ids, seed, related if params.negatives == "related" else None)
        taken = taken.assign(reward=taken["prompt"].map(floor).astype(float))
    negatives = _counted(taken, bottom)
    positives = positives[positives["prompt"].isin(negatives["prompt"])]
    lowest = positives.groupby("prompt")["reward"].min()
    highest = negatives.groupby("prompt")["reward"].max().reindex(lowest.index)
    apart = lowest.index[lowest > highest]
    lists = pd.concat([positives.assign(role="positive"), negatives.assign(role="negative")], ignore_index=True)
    lists = lists[lists["prompt"].isin(apart)]
    return _sorted(lists, lists["prompt"], -lists["reward"], lists["tie"]), {
        "too_few_positives": prompts - with_positives,
        "too_few_negatives": with_positives - len(lowest),
        "positive_not_above_negatives": len(lowest) - len(apart),
    }


def _counted(rows: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """Rows of the prompts that have as many as asked for."""
    if count is None:
        return rows
    return rows[(rows.groupby("prompt", sort=False)["prompt"].transform("size") == count).to_numpy(dtype=bool)]
