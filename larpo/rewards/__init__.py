"""Rewards r(x, y): a name in `REWARDS` is one class in one file and one line here.

A reward sees whole tables: `score(prompts, responses)` returns one row per response. Whether it needs
reference answers is said by `needs_answers`, and checked before anything is scored.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import pandas as pd

from larpo.errors import UserError
from larpo.params import nearest


class Reward(Protocol):
    needs_answers: bool

    def score(self, messages: list[list[dict[str, str]]], answers: list[str | None], texts: list[str]) -> pd.DataFrame:
        """Score each (prompt, response). Returns columns reward (float) and correct (bool or null)."""

    def facts(self) -> dict[str, Any]:
        """Identity of the reward for the manifest: rule and version, or weights hash and template."""


REWARDS: dict[str, str] = {
    "final_number": "larpo.rewards.rules:FinalNumber",
    "exact_match": "larpo.rewards.rules:ExactMatch",
    "math": "larpo.rewards.rules:MathEquivalence",
}
"""name → module:class"""


def build_reward(name: str, options: dict[str, Any]) -> Reward:
    """The reward of that name, with `score.options` as its arguments."""
    if name not in REWARDS:
        raise UserError(f"params.yaml: score.reward: {name!r} does not exist{nearest(name, list(REWARDS))}")
    module, _, cls = REWARDS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)(**options)
    except TypeError as error:
        raise UserError(f"params.yaml: score.options: {name}: found {', '.join(options)}: {error}") from None
