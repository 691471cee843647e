"""What the nodes that score responses share: parts that never split a prompt, and penalties."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from larpo.errors import UserError
from larpo.rewards import MODELS, build_reward, parts, penalised
from tasks.frame.node import Node
from tasks.frame.parts import in_parts

MODEL_PART = 256  # responses per part where a model scores them


def score_in_parts(
    node: Node, responses: pd.DataFrame, prompts: pd.DataFrame, part: int, paths: tuple[str, str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rewards (reward, correct) in the order of `responses`, penalties taken off, and the reward's facts.

    Parameters
    ----------
    responses
        Columns prompt_id, text, n_tokens, finish_reason.
    prompts
        Columns prompt_id, messages, answer.
    part
        Responses per part: what a kill can cost. A part holds whole prompts, for PairRM compares a prompt's candidates.
    paths
        Files of responses and prompts, for errors.
    """
    params = node.params.score
    reward = build_reward(params.reward, params.options, node.checkpoint("reward"))
    if reward.needs_answers and prompts["answer"].isna().any():
        row = int(prompts["answer"].isna().to_numpy().argmax())
        raise UserError(f"{paths[1]}, row {row}: no answer; score.reward={params.reward} needs one for every prompt")
    if any(name in MODELS for name, _ in parts(params)):
        part = min(part, MODEL_PART)
    joined = responses[["prompt_id", "text", "n_tokens", "finish_reason"]].merge(
        prompts[["prompt_id", "messages", "answer"]], on="prompt_id", how="left", validate="many_to_one"
    )
    cut = (joined["finish_reason"] == "length").to_numpy()
    # Rows of each prompt together, prompts in the order they first appear.
    place = pd.factorize(joined["prompt_id"])[0]
    order = np.argsort(place, kind="stable")
    starts = [0]
    for position in np.flatnonzero(np.diff(place[order])) + 1:
        if position - starts[-1] >= part:
            starts.append(int(position))

    def make(start: int, end: int) -> pd.DataFrame:
        rows = order[start:end]
        some = joined.iloc[rows]
        scored = reward.score(
            some["messages"].tolist(),
            some["answer"].tolist(),
            some["text"].tolist(),
            groups=some["prompt_id"].tolist(),
            cut=cut[rows].tolist(),
        )
        # What the reward counted in this part stands in its first row.
        counted = [json.dumps(reward.taken()), *[None] * (end - start - 1)]
        return scored[["reward", "correct"]].reset_index(drop=True).assign(counted=counted)

    found = in_parts(node, list(zip(starts, [*starts[1:], len(order)], strict=True)), make)
    counts: Counter[str] = Counter()
    for counted in found.pop("counted").dropna():
        counts.update(json.loads(counted))
    found.index = pd.Index(order)
    found = found.sort_index()
    found["correct"] = found["correct"].astype(object).where(found["correct"].notna(), None)
    found["reward"] = penalised(found, params, joined["n_tokens"].to_numpy(dtype=float), cut)
    if not np.isfinite(found["reward"]).all():
        row = int((~np.isfinite(found["reward"])).to_numpy().argmax())
        raise UserError(f"{paths[0]}, row {row}: reward {params.reward} gave {found['reward'][row]}")
    return found, {**reward.facts(), **counts}
