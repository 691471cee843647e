"""The held-out part of the training task: greedy accuracy and Pass@N on prompts never trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.params import BenchmarkParams, Params
from larpo.prompts import draw
from larpo.rewards import build_reward
from larpo.statistics import pass_at_n, share_interval, wilson


class HeldOut:
    """Scored by the run's own reward. Only verifiable rewards: accuracy needs right and wrong."""

    def __init__(self, params: Params, entry: BenchmarkParams):
        self.params, self.entry = params, entry
        self.reward = build_reward(params.score.reward, params.score.options)

    def items(self) -> pd.DataFrame:
        frame = draw(self.params.prompts, self.entry.items, seed_of(self.params.seed, "held_out"), held_out=True)
        if self.reward.needs_answers and frame["answer"].isna().any():
            raise UserError(
                f"params.yaml: score.reward: {self.params.score.reward} needs answers, but held-out prompts "
                "have none; set prompts.answer_field, or choose another benchmark"
            )
        return frame

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        joined = outputs[["prompt_id", "text", "finish_reason"]].merge(items, on="prompt_id", how="left")
        scored = self.reward.score(joined["messages"].tolist(), joined["answer"].tolist(), joined["text"].tolist())
        # A response that was cut off gave no final answer, whatever number stands last in it.
        complete = (joined["finish_reason"] != "length").to_numpy()
        return pd.DataFrame(
            {"parsed": scored["parsed"], "score": np.where(complete, scored["correct"].astype(float), 0.0)}
        )

    def aggregate(self, evaluations: pd.DataFrame) -> dict[str, Any]:
        """Greedy accuracy with its Wilson interval; Pass@N for N = 1, 2, 4, … with intervals over prompts;
        mean reward, mean length in tokens, and shares of truncated and unparsed samples."""
        greedy = evaluations[evaluations["sample"] < 0]
        sampled = evaluations[evaluations["sample"] >= 0]
        right = int(greedy["score"].sum())
        low, high = wilson(right, len(greedy))
        group = sampled.groupby("prompt_id", sort=True)["score"]
        n, c = group.size().to_numpy(), group.sum().to_numpy().round().astype(int)
        budgets = [2**i for i in range(32) if 2**i < self.entry.samples] + [self.entry.samples]
        passes = {}
        for budget in budgets:
            values = pass_at_n(n, c, budget)
            low_n, high_n = share_interval(values)
            passes[str(budget)] = {"value": float(values.mean()), "low": low_n, "high": high_n}
        cut = sampled["finish_reason"] == "length"
        reward = sampled["score"] - self.params.score.truncation_penalty * cut
        length = sampled["n_tokens"].to_numpy(dtype=float)
        varied = length.std() > 0 and reward.std() > 0
        return {
            "items": len(greedy),
            "sampled_items": len(n),
            "samples": self.entry.samples,
            "temperature": self.entry.temperature,
            "greedy": {"accuracy": right / len(greedy), "low": low, "high": high},
            "pass": passes,
            "mean_reward": float(reward.mean()),
            "mean_length": float(length.mean()),
            "truncated": float(cut.mean()),
            "unparsed": float(sampled["parsed"].isna().mean()),
            "length_reward_correlation": float(np.corrcoef(length, reward)[0, 1]) if varied else None,
        }
