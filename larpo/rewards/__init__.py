"""Rewards r(x, y): a name in `REWARDS` is one class in one file and one line here.

A reward sees whole tables: `score(messages, answers, texts)` returns one row per response. Whether it needs
reference answers is said by `needs_answers`, and checked before anything is scored. A reward that reads a model gets
the folder that the node `reward` made, and loads it when it scores for the first time.
"""

from typing import Any, Protocol

import numpy as np
import pandas as pd

from larpo.config.sections import ScoreParams
from larpo.errors import ParameterError
from larpo.models.resolve import Model
from larpo.registry import Registry
from larpo.rewards.summands import parse


class Reward(Protocol):
    needs_answers: bool

    def score(
        self,
        messages: list[list[dict[str, str]]],
        answers: list[str | None],
        texts: list[str],
        *,
        groups: list[str] | None = None,
        cut: list[bool] | None = None,
    ) -> pd.DataFrame:
        """Score each (prompt, response). Returns columns reward (float) and correct (bool or null).

        `groups` names each response's prompt, for rewards that compare a prompt's responses; None: equal messages are
        one prompt. `cut` marks responses that were cut off: a rule finds no final answer in them.
        """

    def taken(self) -> dict[str, int]:
        """What was cut to fit the model since the last call, by name; empty for rules."""

    def facts(self) -> dict[str, Any]:
        """Identity of the reward for the manifest: rule and version, or weights hash and template."""


REWARDS = Registry(
    "reward",
    {
        "final_number": "larpo.rewards.rules:FinalNumber",
        "closeness": "larpo.rewards.rules:Closeness",
        "exact_match": "larpo.rewards.rules:ExactMatch",
        "math": "larpo.rewards.rules:MathEquivalence",
        "sequence_classification": "larpo.rewards.classifier:SequenceClassification",
        "pairrm": "larpo.rewards.pairrm:PairRMReward",
        "sum": "larpo.rewards.combined:Sum",
    },
    plain="larpo.rewards.plain:plain",
)

MODELS = ("sequence_classification", "pairrm")
"""Rewards that read the model of the node `reward`; their names are the kinds of `reward.kind`."""


def build_reward(name: str, options: dict[str, Any], model: Model | None = None) -> Reward:
    """The reward of that name, with `score.options` as its arguments; `model` is the folder of the node `reward`."""
    made = REWARDS.load(name, "score.reward")
    first = (model,) if name in (*MODELS, "sum") else ()
    try:
        return made(*first, **options)
    except TypeError as error:
        raise ParameterError("score.options", f"{name}: found {', '.join(options)}: {error}") from None


def parts(score: ScoreParams) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of the reward itself, or of each part of a `sum`."""
    if score.reward != "sum":
        return [(score.reward, score.options)]
    return [(part.reward, part.options) for part in parse(score.options, REWARDS)]


def check_answers(rules: list[tuple[str, dict[str, Any]]], prompts: pd.DataFrame, where: str) -> None:
    """Refuse prompts whose reference answers a rule cannot compare with: every response to them would score 0.

    Parameters
    ----------
    rules
        (name, options) as `parts` gives them; models among them need no answers.
    prompts
        A `prompts` or an `items` table; `where` says which, for the message.
    """
    for name, options in rules:
        if name in MODELS:
            continue
        rule = build_reward(name, options)
        unusable = getattr(rule, "unusable", None)
        if not rule.needs_answers:
            continue
        answers = [None if pd.isna(a) else a for a in prompts["answer"]]
        none = [i for i, a in enumerate(answers) if a is None]
        rows, expected = unusable(answers) if unusable else (none, "there")
        if rows:
            asked, found = prompts["messages"].iloc[rows[0]][-1]["content"], answers[rows[0]]
            told = "have none" if rows == none else f"have one that is not {expected}"
            raise ParameterError(
                "score.reward",
                f"{name} needs answers that are {expected}, but {len(rows)} of {len(answers)} {where} "
                f"({len(rows) / len(answers):.0%}) {told}; the first is row {rows[0]}: {asked[:60]!r} with "
                f"{None if found is None else found[:60]!r}; set prompts.answer_field or prompts.answer_pattern, or "
                "take exact_match or math",
                "params.yaml",
            )


def verifiable(score: ScoreParams) -> tuple[str, dict[str, Any]] | None:
    """The first part that says right or wrong (a rule); None where the reward is a model's alone."""
    return next((part for part in parts(score) if is_verifiable(part[0])), None)


def is_verifiable(name: str) -> bool:
    """Whether a reward says right or wrong of every response."""
    return name not in (*MODELS, "sum") and getattr(REWARDS.load(name), "verifiable", False)


def penalised(scored: pd.DataFrame, score: ScoreParams, n_tokens: np.ndarray, cut: np.ndarray) -> pd.Series:
    """Rewards less `truncation_penalty` for (R,) responses that were cut off and `length_penalty` per token."""
    return scored["reward"] - score.truncation_penalty * cut - score.length_penalty * n_tokens
