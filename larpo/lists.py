"""Candidate lists Y_x (Section 3.3): from every scored response of a prompt to the ordered list.

A recipe is data: which candidates are positives, which are negatives. Everything here works on whole
tables at once; no Python loop runs over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from larpo.hashing import seed_of
from larpo.params import ListsParams


@dataclass(frozen=True)
class Recipe:
    """Which ranked candidates of a prompt enter its list.

    `choose(rank, size, params)` gets each row's rank (0 = best) and its prompt's number of candidates,
    both (N,), and returns two boolean masks (positives, negatives). `needs(params)` is the smallest
    number of candidates a prompt must have. `ranking` says how candidates are ranked first: by reward,
    or drawn at random within correct and incorrect ones.
    """

    choose: Callable[[np.ndarray, np.ndarray, ListsParams], tuple[np.ndarray, np.ndarray]]
    needs: Callable[[ListsParams], int]
    by_correctness: bool = False


RECIPES: dict[str, Recipe] = {
    # Table 3: contrastive, top-1 against the rest
    "top_rest": Recipe(lambda r, n, p: (r < p.top, r >= p.top), lambda p: p.top + 1),
    # Table 2: contrastive top-1 against bottom-3; LambdaRank and ListMLE top-2 with bottom-2
    "top_bottom": Recipe(lambda r, n, p: (r < p.top, r >= n - p.bottom), lambda p: p.top + p.bottom),
    # Table 4: iterative DPO on the best and the worst of the merged list
    "best_worst": Recipe(lambda r, n, p: (r == 0, r == n - 1), lambda p: 2),
    # Table 6: one correct and one incorrect response, drawn at random
    "random_correct_incorrect": Recipe(lambda r, n, p: (r == 0, r == n - 1), lambda p: 2, by_correctness=True),
    # every candidate, ranked
    "all": Recipe(lambda r, n, p: (r < (n + 1) // 2, r >= (n + 1) // 2), lambda p: 2),
}


def responses_needed(params: ListsParams) -> int:
    """Smallest number of responses per prompt from which the recipe can make a list."""
    return RECIPES[params.recipe].needs(params)


@dataclass(frozen=True)
class Built:
    """The lists and where every prompt without one went."""

    lists: pd.DataFrame  # a `lists` table
    dropped_responses: dict[str, int]  # reason → rows
    dropped_prompts: dict[str, int]  # reason → prompts


def tie_break(response_ids: pd.Series, seed: int) -> np.ndarray:
    """(N,) uint64 keys that order responses of equal reward: a seeded hash of the id, so that neither
    position nor iteration decides a tie."""
    key = f"{seed_of('tie', seed):016x}"[:16]
    return pd.util.hash_array(response_ids.to_numpy(dtype=object), hash_key=key, categorize=False)


def build_lists(candidates: pd.DataFrame, params: ListsParams, seed: int) -> Built:
    """Order each prompt's candidates by falling reward and apply the recipe.

    Parameters
    ----------
    candidates
        A `candidates` table that holds the memory window only (the caller picks the iterations).
    seed
        Decides ties and the random recipe.

    Returns
    -------
    Built
        `lists` sorted by prompt, then rank. A prompt makes no list, and is counted, when fewer
        candidates are left than the recipe needs, or when all chosen rewards are equal: equal rewards
        state no preference.
    """
    recipe = RECIPES[params.recipe]
    dropped: dict[str, int] = {}
    prompts_before = candidates["prompt_id"].nunique()

    def keep(frame: pd.DataFrame, mask: np.ndarray | pd.Series, reason: str) -> pd.DataFrame:
        if count := int((~mask).sum()):
            dropped[reason] = count
        return frame[mask]

    frame = candidates[["prompt_id", "response_id", "iteration", "reward", "correct", "token_ids", "finish_reason"]]
    if params.truncated == "drop":
        frame = keep(frame, frame["finish_reason"] != "length", "truncated")
    frame = keep(frame, frame["token_ids"].map(len) > 0, "empty")
    if recipe.by_correctness:
        frame = keep(frame, frame["correct"].notna(), "not_verifiable")
    frame = frame.assign(tie=tie_break(frame["response_id"], seed))
    if params.unique:
        # The newest of identical responses stays: its text is as likely under the current policy, and
        # its id is the one that this iteration's sampling recorded.
        frame = frame.assign(tokens=frame["token_ids"].map(lambda ids: np.asarray(ids, np.int32).tobytes()))
        # Their rewards differ only where the reward is not deterministic; then the best stays, whatever the seed.
        frame = frame.sort_values(["iteration", "reward", "tie"], ascending=[False, False, True], kind="stable")
        frame = keep(frame, ~frame.duplicated(["prompt_id", "tokens"]), "identical")
    order = frame["correct"].astype(float) if recipe.by_correctness else frame["reward"]
    frame = frame.assign(order=order).sort_values(
        ["prompt_id", "order", "tie"], ascending=[True, False, True], kind="stable"
    )

    group = frame.groupby("prompt_id", sort=False)
    rank = group.cumcount().to_numpy()
    size = group["response_id"].transform("size").to_numpy()
    enough = size >= recipe.needs(params)
    positive, negative = recipe.choose(rank, size, params)
    chosen = frame.assign(role=np.where(positive, "positive", "negative"))[(positive | negative) & enough]
    rewards = chosen.groupby("prompt_id", sort=False)["order"]
    split = (rewards.transform("max") > rewards.transform("min")).to_numpy(dtype=bool)
    lists = chosen[split]
    lists = lists.assign(rank=lists.groupby("prompt_id", sort=False).cumcount())

    too_few = int(frame.loc[~enough, "prompt_id"].nunique()) + prompts_before - frame["prompt_id"].nunique()
    equal = int(chosen.loc[~split, "prompt_id"].nunique())
    reasons = {"too_few_candidates": too_few, "all_rewards_equal": equal}
    return Built(
        lists[["prompt_id", "rank", "response_id", "reward", "role"]].reset_index(drop=True),
        dropped,
        {reason: count for reason, count in reasons.items() if count},
    )
