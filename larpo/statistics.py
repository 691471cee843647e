"""Estimators that the scores use: Pass@N (= Recall@N of the paper), Best-of-N, votes, and 95 % intervals.

The two closed forms of intervals are ours, not SciPy's, whose last bits differ and whose import takes longer than the
report; a test compares them with SciPy's.
"""

from math import comb, isfinite, log
from typing import Any

import numpy as np
import pandas as pd

Z95 = 1.959963984540054


def pass_at_n(n_samples: np.ndarray, n_correct: np.ndarray, n: int) -> np.ndarray:
    """Unbiased probability, per prompt, that at least one of `n` samples is correct.

    1 − C(s − c, n) / C(s, n) for s samples of which c are correct, as a product that cannot overflow
    (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", Section 2.1).

    Parameters
    ----------
    n_samples, n_correct
        Integer arrays (P,), one entry per prompt; every s ≥ n.

    Returns
    -------
    (P,) float64 in [0, 1].
    """
    s, c = np.asarray(n_samples, dtype=np.int64), np.asarray(n_correct, dtype=np.int64)
    if n < 1 or (s < n).any():
        raise ValueError(f"Pass@{n} needs at least {n} ≥ 1 samples per prompt, found {s.min()}")
    if ((c < 0) | (c > s)).any():
        raise ValueError("correct samples must lie between 0 and the number of samples")
    i = np.arange(n)
    # Π_i (s − c − i) / (s − i); a factor ≤ 0 means that n wrong samples cannot be drawn.
    factors = np.clip((s[:, None] - c[:, None] - i) / (s[:, None] - i), 0, None)
    return 1.0 - factors.prod(axis=1)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion of independent yes/no trials (Wilson 1927)."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 ≤ successes ≤ trials and trials ≥ 1, found {successes} of {trials}")
    p, z2 = successes / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % normal interval of a mean over independent units (prompts, not samples: samples of one
    prompt are correlated, so a caller averages them first)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("expected a non-empty one-dimensional array")
    mean = float(values.mean())
    if len(values) == 1:
        return float("-inf"), float("inf")
    half = Z95 * float(values.std(ddof=1)) / np.sqrt(len(values))
    return mean - half, mean + half


def share_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values between 0 and 1 over independent items: the normal one, cut to [0, 1].

    Where all values are 0, or all are 1, the normal interval would have no width; Wilson's then stands in: no
    variable in [0, 1] varies more than a yes/no one of the same mean.
    """
    values = np.asarray(values, dtype=np.float64)
    if ((values < 0) | (values > 1)).any():
        raise ValueError("expected values between 0 and 1")
    if (values == 0).all() or (values == 1).all():
        return wilson(round(values.sum()), len(values))
    low, high = mean_interval(values)
    return max(0.0, low), min(1.0, high)


def best_of_n(rewards: np.ndarray, scores: np.ndarray, n: int) -> float:
    """Expected score of the response with the highest reward among `n` drawn without replacement.

    Unbiased over all subsets, like Pass@N: with responses in groups of equal reward, the best of n lies in
    group g with probability [C(m_g, n) − C(m_{g−1}, n)] / C(s, n), m_g the number of responses with a reward of at
    most that of g; within a group every response is as likely.

    Parameters
    ----------
    rewards, scores
        (s,) reward and score of one item's samples; 1 ≤ n ≤ s.
    """
    rewards, scores = np.asarray(rewards, dtype=float), np.asarray(scores, dtype=float)
    if not 1 <= n <= len(rewards):
        raise ValueError(f"best of {n} needs 1 ≤ n ≤ {len(rewards)} samples")
    value, below = 0.0, 0
    for reward in np.unique(rewards):
        group = rewards == reward
        upto = below + int(group.sum())
        value += (comb(upto, n) - comb(below, n)) / comb(len(rewards), n) * scores[group].mean()
        below = upto
    return float(value)


def best_of_n_curve(samples: pd.DataFrame, ns: list[int]) -> list[dict[str, Any]]:
    """Best-of-N under a reward, measured by the true score, as N grows: a proxy reward is over-optimised.

    The pick's distance from the policy is at most KL = log N − (N − 1)/N (Beirami et al. 2024), which makes curves of
    best-of-N and of training comparable.

    Parameters
    ----------
    samples
        Columns prompt_id, reward, score; every prompt has at least max(ns) rows.

    Returns
    -------
    One entry per N, in rising order: n, kl, and with 95 % intervals over items `score` and `reward` of the response
    that the reward picks among N, and `upper`, the best score among N (= Pass@N where scores are 0 and 1), which no
    pick can beat.
    """
    groups = [(g["reward"].to_numpy(), g["score"].to_numpy()) for _, g in samples.groupby("prompt_id", sort=True)]
    share = bool(samples["score"].between(0, 1).all())

    def estimate(means: list[float], share: bool) -> dict[str, float | None]:
        values = np.array(means).clip(0, 1) if share else np.array(means)
        ends = [end if isfinite(end) else None for end in (share_interval if share else mean_interval)(values)]
        return {"value": float(values.mean()), "low": ends[0], "high": ends[1]}

    return [
        {
            "n": n,
            "kl": log(n) - (n - 1) / n,
            "score": estimate([best_of_n(r, s, n) for r, s in groups], share),
            "upper": estimate([best_of_n(s, s, n) for _, s in groups], share),
            "reward": estimate([best_of_n(r, r, n) for r, _ in groups], False),
        }
        for n in sorted(set(ns))
    ]


def majority_vote(answers: list[str | None], scores: list[float], n: int) -> float:
    """Mean score of the most frequent answer among `n` samples (self-consistency, Wang et al. 2023).

    The samples are cut into ⌊s/n⌋ groups in their order, which share none, and the groups' scores averaged. Null
    answers do not vote; a tie goes to the answer that came first; no vote at all scores 0.
    """
    if not 1 <= n <= len(answers):
        raise ValueError(f"a vote of {n} needs 1 ≤ n ≤ {len(answers)} samples")
    found = []
    for start in range(0, len(answers) - n + 1, n):
        votes: dict[str, int] = {}
        worth: dict[str, float] = {}
        for answer, score in zip(answers[start : start + n], scores[start : start + n], strict=True):
            if isinstance(answer, str):
                votes[answer] = votes.get(answer, 0) + 1
                worth.setdefault(answer, score)
        found.append(worth[max(votes, key=votes.__getitem__)] if votes else 0.0)
    return float(np.mean(found))
