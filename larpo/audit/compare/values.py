"""Whether and where two values, JSON trees or tables of a run differ, and the words for it.

Numbers of which one is a float are the same within a tolerance t where |x − y| ≤ t · (1 + |x|). All else has to be
equal in value and type; without a tolerance, so have floats.
"""

import math
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

EXACT = 1e-9
"""Numbers that a rule or a formula makes are the same up to the last bits of a float."""
WIDTH = 60  # characters of a value
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = WIDTH + 20


class Absent:
    """What stands for a key that one of two trees lacks."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


def deviation(x: float, y: float) -> float:
    """|x − y| / (1 + |x|); NaN does not deviate from NaN, and infinitely from all else."""
    if x == y or (math.isnan(x) and math.isnan(y)):
        return 0.0
    off = abs(x - y) / (1 + abs(x))
    return math.inf if math.isnan(off) else off


def close(x: float, y: float, tolerance: float) -> bool:
    return deviation(x, y) <= tolerance


def leaves(x: Any, y: Any, key: str = "", lists: bool = True) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, value in `x`, value in `y` of all that two JSON trees hold, in the order of `x`.

    Lists of equal length are walked through, others are leaves; with `lists` off all of them are.
    """
    if isinstance(x, dict) and isinstance(y, dict):
        inside = [(name, x.get(name, ABSENT), y.get(name, ABSENT)) for name in dict.fromkeys([*x, *y])]
    elif lists and isinstance(x, list) and isinstance(y, list) and len(x) == len(y):
        inside = [(i, a, b) for i, (a, b) in enumerate(zip(x, y, strict=True))]
    else:  # NumPy's numbers are what JSON makes of them
        yield key, *(value.item() if isinstance(value, np.generic) else value for value in (x, y))
        return
    for name, a, b in inside:
        yield from leaves(a, b, f"{key}.{name}" if key else str(name), lists)


def differing(x: Any, y: Any, tolerance: float | None = None, lists: bool = True) -> Iterator[tuple[str, Any, Any]]:
    """The leaves that are not the same."""
    return (leaf for leaf in leaves(x, y, lists=lists) if not _same(*leaf[1:], tolerance))


def same(x: Any, y: Any, tolerance: float | None = None) -> bool:
    return next(differing(x, y, tolerance), None) is None


def _same(x: Any, y: Any, tolerance: float | None) -> bool:
    if tolerance is not None and {type(x), type(y)} in ({float}, {float, int}):
        return close(x, y, tolerance)
    return type(x) is type(y) and (x == y or (isinstance(x, float) and math.isnan(x) and math.isnan(y)))


def first_key(x: Any, y: Any, tolerance: float | None = None) -> str | None:
    """The first key under which two JSON trees differ, and how, as one line."""
    return next((f"{key or 'value'}: {contrast(a, b)}" for key, a, b in differing(x, y, tolerance)), None)


def contrast(x: Any, y: Any, words: tuple[str, str] = ("expected", "found")) -> str:
    """`expected X, found Y`; of long texts the part around the first character that differs, of lists the first element
    that does, or their lengths."""
    where = ""
    if isinstance(x, str) and isinstance(y, str) and max(len(x), len(y)) > WIDTH:
        at = next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y)))
        start = max(0, at - WIDTH // 3)
        x, y, where = x[start : start + WIDTH], y[start : start + WIDTH], f"character {at}: "
    elif isinstance(x, list) and isinstance(y, list):
        if len(x) != len(y):
            return f"{words[0]} {len(x)} elements, {words[1]} {len(y)}"
        at = next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if not same(a, b)), None)
        if at is not None and len(x) > 1:
            return f"element {at}: {contrast(x[at], y[at], words)}"
    return f"{where}{words[0]} {SHORT.repr(x)}, {words[1]} {SHORT.repr(y)}"


def value_at(tree: Any, dotted: str) -> Any:
    """What stands under a dotted key of a tree; ABSENT where nothing does."""
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return ABSENT
        tree = tree[part]
    return tree


def different_values(
    where: str, recorded: Any, again: Any, words: str = "computed again", tolerance: float = EXACT
) -> list[str]:
    """A line for each leaf of two JSON trees that differs; `where` names the first of them, `words` what the second
    is."""
    pairs = differing(recorded, again, tolerance)
    return [f"{where}: {key} {contrast(a, b, ('is', words))}" for key, a, b in pairs]


def different_rows(
    where: str, recorded: pd.DataFrame, again: pd.DataFrame, columns: Sequence[str], tolerance: float = EXACT
) -> list[str]:
    """A line for each row whose values differ in one of `columns`, compared by position; named by the index of
    `recorded`, the table of the file `where`."""
    if len(recorded) != len(again):
        return [f"{where}: {len(recorded)} rows, computed again {len(again)}"]
    lines: dict[int, str] = {}
    for column in columns:
        for row, (a, b) in enumerate(zip(recorded[column].tolist(), again[column].tolist(), strict=True)):
            a, b = _plain(a), _plain(b)
            if row not in lines and not same(a, b, tolerance):
                lines[row] = f"{where}, row {recorded.index[row]}: {column} {contrast(a, b, ('is', 'computed again'))}"
    return [lines[row] for row in sorted(lines)]


def different_column(where: str, recorded: pd.DataFrame, **columns: Sequence[Any]) -> list[str]:
    """The same of a table some of whose `columns` were made again."""
    return different_rows(where, recorded, recorded.assign(**columns), list(columns))


def _plain(cell: Any) -> Any:
    """A cell as Python's own type; what pandas has for nothing is None."""
    if isinstance(cell, np.ndarray | list):
        return [_plain(value) for value in cell]
    cell = cell.item() if isinstance(cell, np.generic) else cell
    return None if cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell)) else cell
