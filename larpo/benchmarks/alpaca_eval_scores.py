"""AlpacaEval's win rates from annotations, by the package's own code, without a network.

An annotation says which of two outputs a judge prefers: `preference` between 1 (the baseline's, output_1) and 2 (the
model's, output_2), 0 or 1.5 for a draw. Length control (Dubois et al. 2024) fits a logistic model of the preference
on the difference of lengths, the instruction's difficulty and the model, and predicts it at equal lengths.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from larpo.benchmarks import read_rows
from larpo.errors import UserError

GAMED = ["index", "std_delta_len", "instruction_difficulty", "preference", "not_gamed_baseline"]
UPSTREAM = "df_gamed.csv of the hub dataset tatsu-lab/alpaca_eval"


def win_rates(
    annotations: pd.DataFrame,
    df_gamed: str | Path | None = None,
    instruction_difficulty: str | Path | None = None,
    instructions: list[str] | None = None,
) -> dict[str, Any]:
    """Win rate, length-controlled win rate and standard errors, in percent.

    Parameters
    ----------
    annotations
        Columns preference (null: not annotated; left out, and counted), output_1, output_2; instruction when
        `instructions` is given.
    df_gamed
        The two gamed baselines that length control is regularised to: columns index, std_delta_len,
        instruction_difficulty, preference, not_gamed_baseline. None: the win rate alone.
    instruction_difficulty
        index and instruction_difficulty; replaces that column of `df_gamed`.
    instructions
        All instructions in AlpacaEval's order: the position of one is the index that its difficulty is kept
        under. None: the rows are taken to be in that order, without gaps.

    Returns
    -------
    win_rate, standard_error, discrete_win_rate, n_wins, n_wins_base, n_draws, n_total (as
    `alpaca_eval.metrics.get_winrate`), n_missing; length_controlled_winrate and lc_standard_error (as
    `get_length_controlled_winrate`), or `length_control` with the reason why there are none.

    Raises
    ------
    UserError
        A file or column is missing, an instruction is unknown, or no row has a preference.
    """
    if not annotations["preference"].notna().any():
        raise UserError("annotations: no row has a preference; expected a number from 1 to 2")
    from alpaca_eval.metrics import get_winrate

    frame = annotations.reset_index(drop=True)
    found = {k: _plain(v) for k, v in get_winrate(frame).items()}
    found["n_missing"] = int(frame["preference"].isna().sum())
    if df_gamed is None:
        return found | {"length_control": f"needs a local copy of {UPSTREAM}; name it by df_gamed"}
    gamed = _gamed(df_gamed, instruction_difficulty)
    frame.index = _positions(frame, instructions, int(gamed["index"].max()) + 1)
    if (frame["output_1"].str.len() - frame["output_2"].str.len()).std() == 0:
        return found | {"length_control": "all outputs differ from the baseline's by the same length"}
    with _offline(gamed) as module:
        # The package names its weights by the generators; nothing is saved here.
        named = frame.assign(generator_1="baseline", generator_2="model")
        controlled = module.get_length_controlled_winrate(
            named, save_weights_dir=None, is_add_glm_preference_inplace=False, is_warn_extreme_changes=False
        )
    names = ("length_controlled_winrate", "lc_standard_error")
    return {name: _plain(controlled[name]) for name in names} | found


def _plain(value: Any) -> int | float:
    return value.item() if hasattr(value, "item") else value


def _read_csv(path: str | Path, columns: list[str]) -> pd.DataFrame:
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; expected {UPSTREAM} or a file with its columns")
    try:
        frame = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from None
    if missing := [c for c in columns if c not in frame]:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    return frame


def _gamed(path: str | Path, difficulty: str | Path | None) -> pd.DataFrame:
    """The gamed baselines' rows, with the difficulty from a file of its own where one is named."""
    if difficulty is None:
        return _read_csv(path, GAMED)
    frame = _read_csv(path, [c for c in GAMED if c != "instruction_difficulty"])
    values = _read_csv(difficulty, ["index", "instruction_difficulty"]).set_index("index")["instruction_difficulty"]
    frame["instruction_difficulty"] = frame["index"].map(values)
    if frame["instruction_difficulty"].isna().any():
        row = int(frame["instruction_difficulty"].isna().to_numpy().argmax())
        raise UserError(f"{difficulty}: no difficulty for index {frame['index'].iloc[row]} of {path}")
    return frame


def _positions(frame: pd.DataFrame, instructions: list[str] | None, known: int) -> pd.Index:
    """AlpacaEval's index of each row."""
    if instructions is None:
        if len(frame) != known:
            raise UserError(
                f"annotations: {len(frame)} rows, but {known} instructions have a difficulty; length control needs to "
                "know which these are: name the instructions' file by data"
            )
        return pd.RangeIndex(known)
    where: dict[str, list[int]] = {}
    for i, text in enumerate(instructions):
        where.setdefault(text, []).append(i)
    taken: list[int] = []
    for row, text in enumerate(frame["instruction"]):
        if not where.get(text):
            raise UserError(f"annotations, row {row}: instruction {text[:60]!r} is not among those of the data file")
        # The same text twice (with two indices) is met in the same order.
        taken.append(where[text].pop(0))
    return pd.Index(taken)


@contextmanager
def _offline(gamed: pd.DataFrame) -> Iterator[Any]:
    """The package's module for length control, reading our copy where it would ask the hub."""
    from alpaca_eval.metrics import glm_winrate

    fetch = glm_winrate.hf_hub_download
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "df_gamed.csv"
        gamed.assign(model="gamed")[["model", *GAMED]].to_csv(path, index=False)
        glm_winrate.hf_hub_download = lambda **_: str(path)
        try:
            yield glm_winrate
        finally:
            glm_winrate.hf_hub_download = fetch


def read_annotations(path: str | Path) -> pd.DataFrame:
    """Annotations as AlpacaEval publishes them: rows with instruction, output_1, output_2 and preference."""
    return check_annotations(read_rows(path, "annotations with instruction, output_1, output_2 and preference"), path)


def check_annotations(rows: list[dict[str, Any]], path: str | Path) -> pd.DataFrame:
    """Rows as a table; names the first that is no annotation."""
    for i, row in enumerate(rows):
        for key in ("output_1", "output_2"):
            if not isinstance(row.get(key), str):
                raise UserError(f"{path}, row {i}: expected text under {key!r}, found {row.get(key)!r}")
        value = row.get("preference")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if "preference" not in row or not (value is None or (number and (value != value or 0 <= value <= 2))):
            raise UserError(f"{path}, row {i}: preference: expected a number from 0 to 2 or null, found {value!r}")
    frame = pd.DataFrame(rows)
    frame["preference"] = pd.to_numeric(frame["preference"])
    return frame
