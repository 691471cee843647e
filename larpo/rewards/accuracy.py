"""How often a reward model prefers the response that people, or a rule, preferred."""

from typing import Any

import numpy as np

from larpo.config.reward import RewardParams
from larpo.errors import UserError
from larpo.models.resolve import Model
from larpo.rewards.classifier import SequenceClassification
from larpo.rewards.pairrm import PairRMReward
from larpo.sources.pairs import Pair, read_pairs
from larpo.statistics import wilson


def read_check(params: RewardParams, name: str) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of `reward.checks.NAME`; of `sums` only those of held-out problems, for the others are trained on."""
    pairs, dropped = read_pairs(params.checks[name], f"reward.checks.{name}")
    if params.checks[name].source == "dataset" or params.train is None:
        return pairs, dropped
    kept = [pair for pair in pairs if pair.held_out(params.train.held_out)]
    if not kept:
        raise UserError(f"params.yaml: reward.checks.{name}: none of its {len(pairs)} problems is held out; take more")
    return kept, dropped | {"not_held_out": len(pairs) - len(kept)}


def pair_accuracy(model: Model, params: RewardParams, pairs: list[Pair]) -> dict[str, Any]:
    """Share of pairs whose chosen response gets the higher score, a tie counting half, with its 95 % Wilson interval.

    Beside it the share where the longer response was chosen: what a reward would get that saw nothing but length.
    """
    fitting, scores = pair_scores(model, params, pairs)
    return accuracy(fitting, scores[:, 0] - scores[:, 1], len(pairs) - len(fitting))


def pair_scores(model: Model, params: RewardParams, pairs: list[Pair]) -> tuple[list[Pair], np.ndarray]:
    """The N pairs that the model is long enough for, and the (N, 2) scores of chosen and rejected."""
    reward = PairRMReward(model) if params.kind == "pairrm" else SequenceClassification(model)
    before = len(pairs)
    if isinstance(reward, SequenceClassification):
        pairs = [p for p in pairs if reward.fits(p.messages, p.chosen) and reward.fits(p.messages, p.rejected)]
    if not pairs:
        raise UserError(f"params.yaml: reward.max_length: {params.max_length} tokens hold none of {before} pairs")
    scores = reward.score(
        [p.messages for p in pairs for _ in range(2)],
        [None] * (2 * len(pairs)),
        [text for p in pairs for text in (p.chosen, p.rejected)],
        groups=[str(i) for i in range(len(pairs)) for _ in range(2)],
    )["reward"]
    return pairs, scores.to_numpy().reshape(-1, 2)


def accuracy(pairs: list[Pair], margins: np.ndarray, too_long: int) -> dict[str, Any]:
    """What (N,) margins of pairs say of the model."""
    longer = np.array([np.sign(len(p.chosen) - len(p.rejected)) for p in pairs])
    right, ties = int((margins > 0).sum()), int((margins == 0).sum())
    value = (right + ties / 2) / len(pairs)
    low, high = wilson(round(right + ties / 2), len(pairs))
    return {
        "accuracy": {"value": value, "low": low, "high": high},
        "pairs": len(pairs),
        "too_long": too_long,
        "ties": ties,
        "mean_margin": float(margins.mean()),
        "longer_is_better": float(((longer + 1) / 2).mean()),
    }
