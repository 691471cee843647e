"""Whether two sets of samples of the same policy differ by more than chance.

Another machine adds floats in another order or draws other random numbers, so a sampled text may part anywhere and
then goes its own way. What must stay is the distribution. Rows are paired (same prompt, temperature and number of the
sample), and where both came from the same distribution either of a pair could have been the other: under every
assignment of signs to the differences their sum is as likely. That is the sign-flip permutation test, exact for few
pairs, and no assumption about lengths or rewards is made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import norm

from larpo.audit.compare.files import batches, first_row, row_line

LEVEL = 1e-3
"""Of one node's comparison; divided by the number of its tests (Bonferroni)."""
EXACT_PAIRS = 16  # up to 2 ** 16 assignments of signs are all counted

ANSWERED = ("response_id", "text", "token_ids", "n_tokens", "finish_reason", "logp")
"""What a machine may change; everything else says what was asked."""


@dataclass
class Pairs:
    """Pairs of rows. `difference`: where the two were not asked the same; then nothing else is filled. `differing`:
    the rows whose answers are not the same."""

    rows: int = 0
    greedy_rows: int = 0
    first: str | None = None
    difference: str | None = None
    differing: list[int] = field(default_factory=list)
    expected: list[pd.DataFrame] = field(default_factory=list)
    found: list[pd.DataFrame] = field(default_factory=list)


def sign_flip(differences: np.ndarray) -> tuple[float, float]:
    """Statistic and two-sided p of the hypothesis that every difference is as likely with the other sign.

    The statistic is z = Σ d / √Σ d². With at most EXACT_PAIRS differences that are not 0, p is the share of all
    assignments of signs whose |Σ| is as large; with more, that of the normal distribution, which the sum then follows.
    No difference: (0, 1).
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[d != 0]
    if not len(d):
        return 0.0, 1.0
    total, norm = float(d.sum()), float(np.sqrt((d**2).sum()))
    z = total / norm
    if len(d) > EXACT_PAIRS:
        return z, math.erfc(abs(z) / math.sqrt(2))
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    return z, float((np.abs(sums) >= abs(total) - 1e-9 * norm).mean())


def collect(expected: Path, found: Path) -> Pairs:
    """Pair the rows of two tables `responses` or `outputs`, in batches; keeps the pairs whose answers differ."""
    pairs = Pairs()
    for start, x, y in batches(expected, found):
        if x.schema.names != y.schema.names or len(x) != len(y):
            return Pairs(difference="not the same columns and rows")
        revised = pa.array(np.zeros(len(x), bool)) if "turn" not in x.schema.names else pc.greater(x["turn"], 0)
        given = [name for name in x.schema.names if name not in (*ANSWERED, "prompt_token_ids")]
        if (row := first_row(x.select(given), y.select(given))) is not None:
            return Pairs(difference=row_line(x, y, row, start, _other(x, y, row, given)))
        # A revision's prompt holds the answer before it; a gold solution is no sample.
        fixed = np.flatnonzero(~revised.to_numpy(zero_copy_only=False))
        a, b = x.take(fixed), y.take(fixed)
        if (row := first_row(a.select(["prompt_token_ids"]), b.select(["prompt_token_ids"]))) is not None:
            return Pairs(difference=row_line(x, y, int(fixed[row]), start, "prompt_token_ids"))
        if "origin" in x.schema.names:
            gold = np.flatnonzero(pc.not_equal(x["origin"], "policy").to_numpy())
            if (row := first_row(x.take(gold), y.take(gold))) is not None:
                return Pairs(difference=row_line(x, y, int(gold[row]), start))
        _pair(pairs, x, y, start)
    return pairs


def _other(x: pa.Table, y: pa.Table, row: int, names: list[str]) -> str:
    return next(c for c in names if not x[c].slice(row, 1).equals(y[c].slice(row, 1)))


def _pair(pairs: Pairs, x: pa.Table, y: pa.Table, start: int) -> None:
    columns = ["text", "token_ids", "finish_reason"]
    same = np.ones(len(x), bool)
    if first_row(x.select(columns), y.select(columns)) is not None:
        for c in columns:
            same &= np.array([a == b for a, b in zip(x[c].to_pylist(), y[c].to_pylist(), strict=True)], bool)
    greedy = x["temperature"].to_numpy() == 0
    pairs.rows += len(x)
    pairs.greedy_rows += int(greedy.sum())
    other = np.flatnonzero(~same)
    if not len(other):
        return
    pairs.differing += (start + other).tolist()
    if pairs.first is None:
        row = int(other[0])
        pairs.first = row_line(x, y, row, start, _other(x, y, row, columns))
    for table, kept in ((x, pairs.expected), (y, pairs.found)):
        rows = table.take(other)
        frame = rows.select(["prompt_id", "text", "finish_reason"]).to_pandas()
        frame["n_tokens"] = pc.list_value_length(rows["token_ids"]).to_numpy()
        kept.append(frame.assign(greedy=greedy[other]))


def within_chance(pairs: Pairs, score: Callable[[Any], np.ndarray] | None) -> tuple[bool, str]:
    """Whether the pairs differ by no more than chance, and one line with shares, shifts and p.

    Tests, separately over greedy and sampled rows: length in tokens, share cut off, and with `score` the reward.
    """
    if not pairs.expected:
        return True, f"all {pairs.rows} answers identical"
    frames = [pd.concat(parts, ignore_index=True) for parts in (pairs.expected, pairs.found)]
    measures = {
        "length": [frame["n_tokens"].to_numpy(dtype=float) for frame in frames],
        "cut off": [(frame["finish_reason"] == "length").to_numpy(dtype=float) for frame in frames],
    }
    if score is not None:
        measures["reward"] = [np.asarray(score(frame), dtype=float) for frame in frames]
    greedy = frames[0]["greedy"].to_numpy()
    rows = {"greedy": (greedy, pairs.greedy_rows), "sampled": (~greedy, pairs.rows - pairs.greedy_rows)}
    groups = {name: group for name, group in rows.items() if group[1]}
    level = LEVEL / (len(measures) * len(groups))
    lines, by_chance = [], True
    for group, (mask, total) in groups.items():
        line = f"{group}: {total - int(mask.sum())} of {total} identical"
        for name, (x, y) in measures.items():
            delta = (y - x)[mask]
            z, p = sign_flip(delta)
            by_chance &= p >= level
            unseen = norm.isf(level / 2) * math.sqrt(float((delta**2).sum())) / total
            line += f", {name} {delta.sum() / total:+.3g} (z {z:.2f}, p {p:.2g}; unseen: below {unseen:.2g})"
        lines.append(line)
    return by_chance, f"{'; '.join(lines)}; sign-flip test of pairs, each at {level:.1g}"
