"""Joins lists with token ids, for the nodes `reference` and `train`."""

from __future__ import annotations

import pandas as pd

from larpo import tables
from larpo.errors import UserError
from larpo.logps import ResponseList


def read_lists(lists_path: str, candidates_path: str) -> pd.DataFrame:
    """Rows of the lists in order, with prompt_token_ids and token_ids as the sampler produced them.

    The prompt's tokens are those of the list's prompt, also where a response answered another one.
    """
    lists = tables.read("lists", lists_path)
    candidates = tables.read("candidates", candidates_path)
    prompts = candidates.drop_duplicates("prompt_id")[["prompt_id", "prompt_token_ids"]]
    responses = candidates[["response_id", "token_ids"]]
    frame = lists.merge(prompts, on="prompt_id", how="left", validate="many_to_one")
    frame = frame.merge(responses, on="response_id", how="left", validate="many_to_one")
    lost = (frame["token_ids"].isna() | frame["prompt_token_ids"].isna()).to_numpy()
    if lost.any():
        raise UserError(
            f"{lists_path}, row {int(lost.argmax())}: its response is not in {candidates_path}; "
            "run `dvc repro --force` on the lists node"
        )
    return frame


def response_lists(frame: pd.DataFrame) -> list[ResponseList]:
    """One `ResponseList` per prompt, in the table's order."""
    return [
        ResponseList(group["prompt_token_ids"].iloc[0].tolist(), [ids.tolist() for ids in group["token_ids"]])
        for _, group in frame.groupby("prompt_id", sort=False)
    ]
