"""What the nodes that score responses share: parts that a kill cannot undo and that never split a prompt."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from larpo.config.sections import ScoreParams
from larpo.errors import UserError
from larpo.rewards import MODELS, build_reward, parts, penalised
from tasks.frame.files import read_json_part, read_part, write_json, write_part
from tasks.frame.node import Node, progress

MODEL_PART = 256  # responses per part where a model scores them


def score_in_parts(
    node: Node, params: ScoreParams, responses: pd.DataFrame, prompts: pd.DataFrame, part: int, paths: tuple[str, str]
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
    reward = build_reward(params.reward, params.options, node.checkpoint("data/reward"))
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
    bounds = list(zip(starts, [*starts[1:], len(order)], strict=True))
    files = [node.scratch / f"part-{start:08d}.part" for start in starts]
    for (start, end), file in progress(
        list(zip(bounds, files, strict=True)), node.stage, size=lambda item: item[0][1] - item[0][0]
    ):
        if read_json_part(file.with_suffix(".json")) is not None and read_part(file) is not None:
            continue
        rows = order[start:end]
        some = joined.iloc[rows]
        scored = reward.score(
            some["messages"].tolist(),
            some["answer"].tolist(),
            some["text"].tolist(),
            groups=some["prompt_id"].tolist(),
            cut=cut[rows].tolist(),
        )
        write_json(file.with_suffix(".json"), reward.taken())
        write_part(scored[["reward", "correct"]].reset_index(drop=True), file)
    found = pd.concat([read_part(file) for file in files], ignore_index=True)
    found.index = pd.Index(order)
    found = found.sort_index()
    found["correct"] = found["correct"].astype(object).where(found["correct"].notna(), None)
    found["reward"] = penalised(found, params, joined["n_tokens"].to_numpy(dtype=float), cut)
    if not np.isfinite(found["reward"]).all():
        row = int((~np.isfinite(found["reward"])).to_numpy().argmax())
        raise UserError(f"{paths[0]}, row {row}: reward {params.reward} gave {found['reward'][row]}")
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(json.loads(file.with_suffix(".json").read_text("utf-8")))
    return found, {**reward.facts(), **counts}
