"""A weighted sum of rewards: Σ weight · r(x, y), such as final_number + 0.1 · sequence_classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, ValidationError

from larpo.config.sections import Section
from larpo.errors import ParameterError, at, first_error, nearest


class Part(Section):
    reward: str
    weight: float = 1.0
    options: dict[str, Any] = {}


class Options(Section):
    parts: list[Part] = Field(min_length=1)


def parse(options: dict[str, Any]) -> list[Part]:
    """`score.options` of a sum; one line for a wrong one."""
    from larpo.rewards import REWARDS

    try:
        parts = Options.model_validate(options).parts
    except ValidationError as error:
        with at("score.options"):
            raise first_error(error, list(Options.model_fields)) from None
    for part in parts:
        known = [name for name in REWARDS if name != "sum"]
        if part.reward not in known:
            raise ParameterError(
                "score.options.parts", f"{part.reward!r} cannot be summed{nearest(part.reward, known)}"
            )
    return parts


class Sum:
    """`correct` is that of the first part that tells right from wrong, null where none does."""

    def __init__(self, folder: Path | None, **options: Any):
        from larpo.rewards import build_reward

        self.parts = parse(options)
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
