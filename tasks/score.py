"""Node `score@s`: the reward of every response of iteration s."""

from __future__ import annotations

import numpy as np
import pandas as pd

from larpo import tables
from larpo.errors import UserError
from larpo.rewards import build_reward
from tasks.node import Node, command, load_params, progress, write_part

PART = 4096  # responses per part: what a kill can cost


def main(iteration: str) -> None:
    """Write data/score/ITERATION.parquet."""
    params = load_params()
    prompts_path, sample_path = f"data/prompts/{iteration}.parquet", f"data/sample/{iteration}.parquet"
    out = f"data/score/{iteration}.parquet"
    with Node(
        "score", iteration, params, uses=["score"], inputs=[prompts_path, sample_path], outputs=[out],
        manifest=f"data/score/{iteration}.manifest.json",
    ) as node:  # fmt: skip
        prompts = tables.read("prompts", prompts_path)
        responses = tables.read("responses", sample_path)
        reward = build_reward(params.score.reward, params.score.options)
        unknown = ~responses["prompt_id"].isin(prompts["prompt_id"])
        if unknown.any():
            raise UserError(
                f"{sample_path}, row {int(unknown.to_numpy().argmax())}: its prompt is not in {prompts_path}; "
                f"run `dvc repro --force sample@{iteration}`"
            )
        if reward.needs_answers and prompts["answer"].isna().any():
            row = int(prompts["answer"].isna().to_numpy().argmax())
            raise UserError(
                f"{prompts_path}, row {row}: no answer; score.reward={params.score.reward} needs one for every prompt"
            )
        joined = responses.merge(prompts[["prompt_id", "messages", "answer"]], on="prompt_id", validate="many_to_one")
        starts = list(range(0, len(joined), PART))
        for start in progress(starts, node.stage, size=lambda s: min(PART, len(joined) - s)):
            path = node.scratch / f"part-{start:08d}.parquet"
            if path.exists():
                continue
            part = joined.iloc[start : start + PART]
            scored = reward.score(part["messages"].tolist(), part["answer"].tolist(), part["text"].tolist())
            write_part(scored[["reward", "correct"]], path)
        frame = pd.concat([pd.read_parquet(node.scratch / f"part-{s:08d}.parquet") for s in starts], ignore_index=True)
        cut = (joined["finish_reason"] == "length").to_numpy()
        if frame["correct"].notna().all():
            # A response that was cut off gave no final answer, whatever stands last in it.
            frame["reward"] = np.where(cut, 0.0, frame["reward"])
            frame["correct"] = frame["correct"].astype(bool) & ~cut
        frame["reward"] -= params.score.truncation_penalty * cut
        if not np.isfinite(frame["reward"]).all():
            row = int((~np.isfinite(frame["reward"])).to_numpy().argmax())
            raise UserError(f"{sample_path}, row {row}: reward {params.score.reward} gave {frame['reward'][row]}")
        frame = frame.assign(response_id=joined["response_id"], reward_name=params.score.reward)
        tables.write(frame[tables.SCHEMAS["rewards"].names], "rewards", node.out(out))
        gold = (joined["origin"] == "gold").to_numpy()
        node.note(reward=reward.facts(), mean_reward=float(frame["reward"][~gold].mean()), truncated=int(cut.sum()))
        if gold.any():
            node.note(gold=int(gold.sum()), gold_wrong=int((frame["correct"][gold].astype(float) == 0).sum()))
        node.rows(read=len(responses), written=len(frame))


if __name__ == "__main__":
    command(main)
