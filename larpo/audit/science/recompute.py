"""Numbers of a run computed a second time from the tables they came from, and where the two differ.

Every function takes tables as `larpo.tables.read` gives them and returns lines, one per difference, the first row
first; none means that the recorded numbers are what the code here makes of their inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from larpo.config.sections import ScoreParams
from larpo.models.resolve import Model
from larpo.rewards import build_reward, penalised

EXACT = 1e-9
"""Numbers that a rule or a formula makes are the same up to the last bits of a float."""


def close(expected: float, found: float, tolerance: float) -> bool:
    """|expected − found| ≤ tolerance · (1 + |expected|); NaN is equal to NaN."""
    if math.isnan(expected) or math.isnan(found):
        return math.isnan(expected) and math.isnan(found)
    return abs(expected - found) <= tolerance * (1 + abs(expected))


def plain(value: Any) -> Any:
    """A cell as Python's own type; what pandas has for nothing is None."""
    if isinstance(value, np.ndarray | list):
        return [plain(v) for v in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) else value


def same(expected: Any, found: Any, tolerance: float = EXACT) -> bool:
    """Equality of two values, floats within a tolerance, into lists and mappings."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(same(expected[k], found[k], tolerance) for k in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(same, expected, found, [tolerance] * len(expected)))
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return close(float(expected), float(found), tolerance)
    return expected == found


def different_rows(
    where: str, recorded: pd.DataFrame, again: pd.DataFrame, columns: Sequence[str], tolerance: float = EXACT
) -> list[str]:
    """Rows whose values differ in some column, compared by position; named by the index of `recorded`.

    Parameters
    ----------
    where
        The file of `recorded`, for the lines.
    """
    if len(recorded) != len(again):
        return [f"{where}: {len(recorded)} rows, computed again {len(again)}"]
    lines: dict[int, str] = {}
    for column in columns:
        left, right = recorded[column].tolist(), again[column].tolist()
        for row, (a, b) in enumerate(zip(left, right, strict=True)):
            a, b = plain(a), plain(b)
            if row not in lines and not same(a, b, tolerance):
                lines[row] = f"{where}, row {recorded.index[row]}: {column} is {_short(a)}, computed again {_short(b)}"
    return [lines[row] for row in sorted(lines)]


def different_values(where: str, recorded: Any, again: Any, key: str = "", words: str = "computed again") -> list[str]:
    """Leaves of two JSON trees that differ, by their dotted keys; `words` say what the second tree is."""
    if isinstance(recorded, dict) and isinstance(again, dict):
        return [
            line
            for name in dict.fromkeys([*recorded, *again])
            for line in different_values(
                where, recorded.get(name, ABSENT), again.get(name, ABSENT), f"{key}.{name}" if key else str(name), words
            )
        ]
    if isinstance(recorded, list) and isinstance(again, list) and len(recorded) == len(again):
        pairs = enumerate(zip(recorded, again, strict=True))
        return [
            line
            for i, (a, b) in pairs
            for line in different_values(where, a, b, f"{key}.{i}" if key else str(i), words)
        ]
    return [] if same(recorded, again) else [f"{where}: {key} is {_short(recorded)}, {words} {_short(again)}"]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def rewards_again(
    score: ScoreParams, prompts: pd.DataFrame, responses: pd.DataFrame, model: Model | None
) -> pd.DataFrame:
    """reward and correct for each of `responses` (prompt_id, text, token_ids, finish_reason), penalties taken off.

    `model` is the folder of the node `reward`.
    """
    reward = build_reward(score.reward, score.options, model)
    joined = responses.merge(
        prompts[["prompt_id", "messages", "answer"]], on="prompt_id", how="left", validate="many_to_one"
    )
    cut = (joined["finish_reason"] == "length").to_numpy()
    # Rewards that compare the responses to one prompt expect them together.
    order = np.argsort(pd.factorize(joined["prompt_id"])[0], kind="stable")
    some = joined.iloc[order]
    found = (
        reward.score(
            some["messages"].tolist(),
            some["answer"].tolist(),
            some["text"].tolist(),
            groups=some["prompt_id"].tolist(),
            cut=cut[order].tolist(),
        )[["reward", "correct"]]
        .set_axis(order)
        .sort_index()
    )
    found["reward"] = penalised(found, score, joined["token_ids"].map(len).to_numpy(dtype=float), cut)
    return found
