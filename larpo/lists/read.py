"""Lists with token ids, and responses to other prompts, for the nodes `reference` and `train`."""

import pandas as pd
from transformers import PreTrainedModel

from larpo import tables
from larpo.errors import UserError
from larpo.models.load import check_tokens
from larpo.training.packing import ResponseList


def read_lists(lists_path: str, candidates_path: str) -> pd.DataFrame:
    """Rows of the lists in order, with prompt_token_ids, token_ids and logp as the sampler produced them, the iteration
    that sampled them, and `answers`: the prompt that they answer.

    The prompt's tokens are those of the list's prompt, also where a response answered another one.
    """
    lists = tables.read("lists", lists_path)
    candidates = tables.read("candidates", candidates_path)
    prompts = candidates.drop_duplicates("prompt_id")[["prompt_id", "prompt_token_ids"]]
    responses = candidates[["response_id", "token_ids", "logp", "iteration", "prompt_id"]]
    responses = responses.rename(columns={"prompt_id": "answers"})
    frame = lists.merge(prompts, on="prompt_id", how="left", validate="many_to_one")
    frame = frame.merge(responses, on="response_id", how="left", validate="many_to_one")
    lost = (frame["token_ids"].isna() | frame["prompt_token_ids"].isna()).to_numpy()
    if lost.any():
        raise UserError(
            f"{lists_path}, row {int(lost.argmax())}: its response is not in {candidates_path}; "
            "run `dvc repro --force` on the lists node"
        )
    blank = (frame["token_ids"].map(len) == 0) | (frame["prompt_token_ids"].map(len) == 0)
    if blank.any():
        raise UserError(
            f"{lists_path}, row {int(blank.to_numpy().argmax())}: its prompt or response has no tokens in "
            f"{candidates_path}; run `dvc repro --force` on the lists node"
        )
    rewards, ranks = frame.groupby("prompt_id", sort=False)["reward"], frame.groupby("prompt_id", sort=False).cumcount()
    for wrong, what in (
        (rewards.transform("size") < 2, "a list needs two responses or more, found one"),
        (frame["rank"] != ranks, "expected ranks 0, 1, 2 … in order"),
        (rewards.diff() > 0, "expected rewards that fall within a list"),
    ):
        if wrong.any():
            raise UserError(
                f"{lists_path}, row {int(wrong.to_numpy().argmax())}: {what}; run `dvc repro --force` on the lists node"
            )
    return frame


def check_list_tokens(model: PreTrainedModel, lists: list[ResponseList], where: str) -> None:
    """Refuse lists whose tokens the model does not have; `where` is the file that they come from."""
    check_tokens(model, (ids for entry in lists for ids in (entry.prompt_ids, *entry.response_ids)), where)


def response_lists(frame: pd.DataFrame) -> list[ResponseList]:
    """One `ResponseList` per prompt, in the table's order."""
    return [
        ResponseList(group["prompt_token_ids"].iloc[0].tolist(), [ids.tolist() for ids in group["token_ids"]])
        for _, group in frame.groupby("prompt_id", sort=False)
    ]


def mismatched_responses(lists: list[ResponseList], where: str) -> list[list[int]]:
    """For each list a response to another prompt, as token ids: the best one of the next list whose prompt differs,
    with the first list after the last. Raises UserError, naming the file `where`, if all prompts are the same."""
    others = []
    for i, entry in enumerate(lists):
        following = (lists[(i + step) % len(lists)] for step in range(1, len(lists)))
        other = next((o for o in following if o.prompt_ids != entry.prompt_ids), None)
        if other is None:
            raise UserError(
                f"{where}: a mismatched response needs lists of at least two prompts, found {len(lists)} of one; "
                "raise prompts.per_iteration or set `reference.mismatched: false`"
            )
        others.append(other.response_ids[0])
    return others
