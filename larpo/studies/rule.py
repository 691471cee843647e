"""Deciding on a difference: an interval at a declared look or at any time, a margin, Holm's correction.

    evidence = of_seeds(differences)               # mean, standard error, degrees of freedom
    low, high = interval(evidence, Procedure.LOOKS, level)
    verdict(low, high, margin)                     # better, worse, same, undecided

Two ways to look more than once without deciding wrongly more often than declared:

- looks at numbers of seeds fixed beforehand, each at the same level (Pocock 1977, "Group sequential methods in the
  design and analysis of clinical trials"): two looks at .0294 err together in .05;
- an e-value, which may be read after every seed (`Procedure.ANYTIME`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Literal

import numpy as np

from larpo.statistics import Z95

Verdict = Literal["better", "worse", "same", "undecided"]
EFFECTS = 1.0
"""Variance, in units of the seeds' variance, of the effects that the e-value bets on: N(0, EFFECTS · σ²)."""


class Procedure(StrEnum):
    LOOKS = "t interval at a declared look"
    ANYTIME = "e-value, valid at any number of seeds"


@dataclass(frozen=True)
class Evidence:
    """A mean difference with its standard error, from `n` units with `df` degrees of freedom."""

    mean: float
    se: float
    n: int
    df: float


def of_seeds(differences: Sequence[float]) -> Evidence:
    """Differences of independent seeds, (S,): mean, s / √S."""
    x = np.asarray(differences, dtype=float)
    se = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.inf
    return Evidence(float(x.mean()), se, len(x), len(x) - 1)


def of_items(differences: Sequence[float], errors: Sequence[float]) -> Evidence:
    """Differences whose standard errors over items, (S,), are known, with seeds as a second level.

    All seeds answer the same items, so what items add does not shrink with seeds: se² = mean(errors)² + s² / S, with
    Satterthwaite's degrees of freedom. With one seed s is unknown and left out: it speaks of that run alone.
    """
    seeds, items = of_seeds(differences), float(np.mean(errors))
    if seeds.n == 1:
        return Evidence(seeds.mean, items, 1, math.inf)
    variance = items**2 + seeds.se**2
    df = variance**2 / (seeds.se**4 / seeds.df) if seeds.se else math.inf
    return Evidence(seeds.mean, math.sqrt(variance), seeds.n, df)


@cache
def quantile(share: float, df: float) -> float:
    """Of Student's t."""
    from scipy.stats import t

    return float(t.ppf(share, df))


def interval(evidence: Evidence, by: Procedure, level: float) -> tuple[float, float]:
    """Two-sided interval that misses the true difference with probability at most `level` (with ANYTIME at any n).

    ANYTIME is the values that the e-value of `p_value` does not reject: mean ± se · √(ν u), where
    u = (B − 1) / (1 − B/(1 + ng)) and B = (√(1 + ng) / level)^(2/n).
    Without a random part (se = 0) only an exact 0 is known: there the arms are the same.
    """
    e = evidence
    if e.se == 0:
        return (0.0, 0.0) if e.mean == 0 else (-math.inf, math.inf)
    if not math.isfinite(e.se):
        return -math.inf, math.inf
    if by == Procedure.LOOKS:
        half = quantile(1 - level / 2, e.df) * e.se
    else:
        wider = 1 + e.n * EFFECTS
        bound = (math.sqrt(wider) / level) ** (2 / e.n)
        half = e.se * math.sqrt(e.df * (bound - 1) / (1 - bound / wider)) if bound < wider else math.inf
    return e.mean - half, e.mean + half


def p_value(evidence: Evidence, value: float, by: Procedure) -> float:
    """Two-sided p-value of the difference being `value`; with ANYTIME 1/e, where

    e = (1 + ng)^(−1/2) · [(1 + u) / (1 + u/(1 + ng))]^(n/2), u = t²/(n − 1),

    is the t test's Bayes factor with the right Haar prior on σ and effects N(0, gσ²): a martingale of the t statistics
    where the difference is `value`, so it ever exceeds 1/α with probability at most α (Pérez-Ortiz et al. 2024,
    "E-statistics, group invariance and anytime-valid testing").
    """
    from scipy.stats import t

    e = evidence
    if e.se == 0:
        return float(e.mean == value or e.mean != 0)
    if not math.isfinite(e.se):
        return 1.0
    statistic = (e.mean - value) / e.se
    if by == Procedure.LOOKS:
        return float(2 * t.sf(abs(statistic), e.df))
    wider, u = 1 + e.n * EFFECTS, statistic**2 / e.df
    log_e = -0.5 * math.log(wider) + e.n / 2 * math.log((1 + u) / (1 + u / wider))
    return min(1.0, math.exp(-log_e))


def verdict(low: float, high: float, margin: float, not_worse: bool = False) -> Verdict:
    """What an interval of a difference says. `margin`: the smallest difference that matters.

    better: above 0. worse: below 0. same: between −margin and margin; where a claim asks only for `not_worse`, above
    −margin.
    """
    if low > 0:
        return "better"
    if not_worse and low > -margin:
        return "same"
    if high < 0:
        return "worse"
    return "same" if -margin < low and high < margin else "undecided"


def against(evidence: Evidence, margin: float, not_worse: bool, by: Procedure) -> float:
    """p-value against a claim: that the difference lies below 0, or, of a claim of a positive one, that it lies between
    −margin and margin (two one-sided tests, the larger p)."""
    worse = p_value(evidence, 0.0, by) if evidence.mean < 0 else 1.0
    if not_worse:
        return worse
    if evidence.se == evidence.mean == 0:
        return 0.0
    inside = abs(evidence.mean) < margin
    return min(worse, max(p_value(evidence, m, by) for m in (-margin, margin)) if inside else 1.0)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979, "A simple sequentially rejective multiple test procedure")."""
    order = np.argsort(values, kind="stable")
    scaled = [min(1.0, (len(values) - i) * values[place]) for i, place in enumerate(order)]
    corrected = np.empty(len(values))
    corrected[order] = np.maximum.accumulate(scaled)
    return corrected.tolist()


def standard_error(low: float, high: float) -> float:
    """Of a number that is given with its 95 % normal interval."""
    return (high - low) / (2 * Z95)
