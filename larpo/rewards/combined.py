"""A weighted sum of rewards: Σ weight · r(x, y), such as final_number + 0.1 · sequence_classification."""

from typing import Any

import pandas as pd

from larpo.models.resolve import Model
from larpo.rewards import REWARDS, build_reward
from larpo.rewards.summands import parse


class Sum:
    """`correct` is that of the first part that tells right from wrong, null where none does."""

    def __init__(self, folder: Model | None, **options: Any):
        self.parts = parse(options, REWARDS)
        self.rewards = [build_reward(part.reward, part.options, folder) for part in self.parts]
        self.needs_answers = any(reward.needs_answers for reward in self.rewards)

    def score(self, messages, answers, texts, *, groups=None, cut=None) -> pd.DataFrame:
        found = [r.score(messages, answers, texts, groups=groups, cut=cut) for r in self.rewards]
        total = sum(part.weight * frame["reward"] for part, frame in zip(self.parts, found, strict=True))
        verdicts = [frame["correct"] for frame in found if frame["correct"].notna().all()]
        correct = verdicts[0] if verdicts else pd.Series([None] * len(texts), dtype=object)
        return pd.DataFrame({"reward": total, "correct": correct})

    def taken(self) -> dict[str, int]:
        return {name: count for reward in self.rewards for name, count in reward.taken().items()}

    def facts(self) -> dict[str, Any]:
        return {
            "reward": "sum",
            "parts": [
                {"weight": part.weight, **reward.facts()} for part, reward in zip(self.parts, self.rewards, strict=True)
            ],
        }
