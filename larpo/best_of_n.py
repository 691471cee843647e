"""Best-of-N under a reward, measured by the true score: a reward that is only a proxy is over-optimised as N grows.

Of one set of s samples per item every N ≤ s is estimated without bias (`larpo.statistics.best_of_n`). The pick's
distance from the policy is at most KL = log N − (N − 1)/N (Beirami et al. 2024), which makes curves of best-of-N and of
training comparable.
"""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pandas as pd

from larpo.statistics import best_of_n, mean_interval, share_interval


def _estimate(values: np.ndarray, share: bool) -> dict[str, float | None]:
    low, high = share_interval(values) if share else mean_interval(values)
    finite = len(values) > 1 or share
    return {"value": float(values.mean()), "low": low if finite else None, "high": high if finite else None}


def curve(samples: pd.DataFrame, ns: list[int]) -> list[dict[str, Any]]:
    """One entry per N, in rising order.

    Parameters
    ----------
    samples
        Columns prompt_id, reward, score; every prompt has at least max(ns) rows.

    Returns
    -------
    n, kl, and with 95 % intervals over items: `score` and `reward` of the response that the reward picks among N, and
    `upper`, the best score among N (= Pass@N where scores are 0 and 1), which no pick can beat.
    """
    groups = [(g["reward"].to_numpy(), g["score"].to_numpy()) for _, g in samples.groupby("prompt_id", sort=True)]
    share = bool(samples["score"].between(0, 1).all())
    return [
        {
            "n": n,
            "kl": log(n) - (n - 1) / n,
            "score": _estimate(np.array([best_of_n(r, s, n) for r, s in groups]).clip(*(0, 1) if share else ()), share),
            "upper": _estimate(np.array([best_of_n(s, s, n) for _, s in groups]).clip(*(0, 1) if share else ()), share),
            "reward": _estimate(np.array([best_of_n(r, r, n) for r, _ in groups]), False),
        }
        for n in sorted(set(ns))
    ]
