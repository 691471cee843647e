"""From the numbers of runs to intervals over seeds and to verdicts on the paper's findings."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from larpo.errors import UserError
from larpo.studies.spec import Claim, Source, Study

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]
Values = dict[str, dict[str, list[float]]]
"""cell → measure → one value per seed, in the order of the seeds"""


@dataclass(frozen=True)
class Interval:
    """Mean over seeds with its 95 % t interval; no interval for a single seed."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Judged:
    """One claim: the difference per seed that it is about, and what that says."""

    says: str
    difference: Interval | None
    verdict: Verdict
    percent: bool = True


def t_interval(values: list[float]) -> Interval:
    """Mean of n values of independent seeds, ± t(0.975, n−1) · s / √n (Student 1908).

    The seeds share the initial model, so it speaks of this model. `held_out` draws its items by the seed; other
    benchmarks have the same items in every seed, and it then speaks of these items.
    """
    from scipy.stats import t

    x = np.asarray(values, dtype=float)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return Interval(mean, None, None, n)
    half = float(t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def verdict(difference: Interval) -> Verdict:
    """A claim of a positive difference: it holds where the whole interval is above 0, and does not hold where it is
    below or where every seed gives exactly 0; anything else is undecided."""
    if difference.low is None or difference.high is None:
        return "undecided"
    if difference.low > 0:
        return "holds"
    if difference.high < 0 or difference.low == difference.high == 0:
        return "does not hold"
    return "undecided"


def judge(claim: Claim, values: Values) -> Judged:
    """Differences are taken seed by seed: runs of one seed share prompts, draws and items."""
    if claim.peak:
        means = {cell: float(np.mean(values[cell][claim.measure])) for cell in claim.peak}
        best = max(claim.peak[1:-1], key=means.__getitem__)
        # Above the higher end is above both; the inner cell was chosen by its mean, which flatters it.
        end = max((claim.peak[0], claim.peak[-1]), key=means.__getitem__)
        found = t_interval(_sum([(best, claim.measure)], values) - _sum([(end, claim.measure)], values))
        return Judged(f"{claim.says} (best {best}, better end {end})", found, verdict(found))
    found = t_interval(_sum(claim.more, values) - _sum(claim.less, values))
    return Judged(claim.says, found, verdict(found))


def _sum(terms: list[tuple[str, str]], values: Values) -> np.ndarray:
    return np.sum([values[cell][measure] for cell, measure in terms], axis=0)


def combine(verdicts: list[Verdict]) -> Verdict:
    """A finding holds where all its claims hold, and does not where one does not."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts and set(verdicts) == {"holds"} else "undecided"


def read_value(folder: Path, source: Source, policy: str | None = None) -> float:
    """One measure of one finished run. Raises UserError where the file or the key is not there."""
    path = folder / source.file.replace("{policy}", policy or "")
    try:
        found: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable ({' '.join(str(error).split())[:120]}); expected a run's metrics"
        ) from None
    for part in source.key.split("/"):
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            raise UserError(f"{source.file}: no {part!r} on the way to {source.key!r}; expected a number there")
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise UserError(f"{source.file}: {source.key}: expected a number, found {found!r}")
    return float(found)


def summarise(study: Study, scale: str, seeds: int, values: Values, facts: dict[str, Any]) -> dict[str, Any]:
    """All that a page shows, as plain JSON; what is in studies/results/."""
    sources = study.sources(scale)
    cells = {
        name: {
            "label": study.cells[name].label,
            "reported": study.cells[name].reported,
            "measures": {m: asdict(t_interval(v)) | {"values": v} for m, v in measured.items()},
        }
        for name, measured in values.items()
    }
    findings = {}
    for finding, claims in study.claims.items():
        judged = []
        for claim in claims:
            used = {m for _, m in [*claim.more, *claim.less]} | ({claim.measure} if claim.peak else set())
            if used <= {*sources}:
                percent = all(sources[m].percent for m in used)
                judged.append(asdict(judge(claim, values)) | {"percent": percent})
            else:
                # A finding must not hold by the claims that happen to be measured at this scale.
                judged.append(asdict(Judged(claim.says, None, "not measured")))
        findings[finding] = {"verdict": combine([j["verdict"] for j in judged]), "claims": judged}
    return {
        "study": study.name,
        "scale": scale,
        "seeds": seeds,
        "measures": {m: {"label": s.label, "percent": s.percent} for m, s in sources.items()},
        "cells": cells,
        "findings": findings,
        **facts,
    }
