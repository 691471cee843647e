"""AlpacaEval's win rates from annotations, by the package's own code, without a network.

An annotation says which of two outputs a judge prefers: `preference` between 1 (the baseline's, output_1) and 2 (the
model's, output_2), 0 or 1.5 for a draw. Length control (Dubois et al. 2024) fits a logistic model of the preference
on the difference of lengths, the instruction's difficulty and the model, and predicts it at equal lengths.
"""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from larpo.errors import ParameterError, UserError
from larpo.sources.rows import hub_file

HUB = "tatsu-lab/alpaca_eval"
GAMED = ["index", "std_delta_len", "instruction_difficulty", "preference", "not_gamed_baseline"]
UPSTREAM = "df_gamed.csv of the hub dataset tatsu-lab/alpaca_eval"


def win_rates(
    annotations: pd.DataFrame, df_gamed: str | Path | None = None, instruction_difficulty: str | Path | None = None
) -> dict[str, Any]:
    """Win rate, length-controlled win rate and standard errors, in percent.

    Parameters
    ----------
    annotations
        Columns preference (null: not annotated; left out, and counted), output_1, output_2; instruction, by which the
        difficulty is known that AlpacaEval keeps under its index.
    df_gamed
        The two gamed baselines that length control is regularised to: columns index, std_delta_len,
        instruction_difficulty, preference, not_gamed_baseline. None: the package's own file, from the hub's cache or
        the hub.
    instruction_difficulty
        index and instruction_difficulty; replaces that column of `df_gamed`.

    Returns
    -------
    win_rate, standard_error, discrete_win_rate, n_wins, n_wins_base, n_draws, n_total (as
    `alpaca_eval.metrics.get_winrate`), n_missing; length_controlled_winrate and lc_standard_error (as
    `get_length_controlled_winrate`, the rows in AlpacaEval's order: the folds of its cross-validation follow it), or
    `length_control` with the reason why there are none.

    Raises
    ------
    UserError
        A file or column is missing, an instruction stands twice, or no row has a preference.
    """
    if not annotations["preference"].notna().any():
        raise UserError("annotations: no row has a preference; expected a number from 1 to 2")
    from alpaca_eval.metrics import get_winrate

    frame = annotations.reset_index(drop=True)
    with _quiet():
        rates = {k: _plain(v) for k, v in get_winrate(frame).items()}
    rates["n_missing"] = int(frame["preference"].isna().sum())
    asked = frame["instruction"] if "instruction" in frame else [None] * len(frame)
    texts = [text if isinstance(text, str) else None for text in asked]
    try:
        if None not in texts:
            positions_of(texts, set())  # whatever the hub has, these may be none of its instructions
        df_gamed = df_gamed or hub_file(HUB, "df_gamed.csv")
        gamed = _gamed(df_gamed, instruction_difficulty)
        frame.index = pd.Index(positions_of(texts, set(gamed["index"])))
    except NoDifficulty as error:
        return rates | {"length_control": f"not computed: {error}"}
    except ParameterError as error:
        return rates | {"length_control": f"not computed: df_gamed: {error}"}
    if unknown := set(frame.index) - set(gamed["index"]):
        raise UserError(f"{df_gamed}: no row for index {min(unknown)}, which an annotated instruction has")
    # The package reads an index off the rows' labels; a constant name stands in where rows name no generator.
    frame = frame.rename_axis("index").sort_index(kind="stable")
    frame = {"generator_1": "baseline", "generator_2": "model"} | frame.to_dict("series")
    frame = pd.DataFrame(frame)
    itself = (frame["generator_1"] == frame["generator_2"]).all()
    if not itself and not (frame["output_1"].str.len() - frame["output_2"].str.len()).std() > 0:
        return rates | {"length_control": "not computed: all outputs differ from the baseline's by the same length"}
    with _quiet(), _offline(gamed) as module:
        # Nothing is saved here: the package would keep its weights beside its code.
        controlled = module.get_length_controlled_winrate(
            frame, save_weights_dir=None, is_add_glm_preference_inplace=False, is_warn_extreme_changes=False
        )
    names = ("length_controlled_winrate", "lc_standard_error")
    return {name: _plain(controlled[name]) for name in names} | rates


def _plain(value: Any) -> int | float | None:
    """A Python number; None for the standard error of a single row."""
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


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


def positions_of(instructions: list[str | None], known: set[int]) -> list[int]:
    """Each row's index among AlpacaEval's 805 instructions, by its text, whose digest order.txt holds. Where no row has
    a text and there is a row for each of the `known` indices, they stand in AlpacaEval's order.

    Raises
    ------
    NoDifficulty
        An instruction is none of the 805, or there is no telling which rows these are.
    UserError
        An instruction stands twice.
    """
    if all(text is None for text in instructions):
        if len(instructions) != len(known):
            raise NoDifficulty(f"{len(instructions)} rows without instructions, but {len(known)} have a difficulty")
        return sorted(known)
    order = {d: i for i, d in enumerate((Path(__file__).parent / "order.txt").read_text("ascii").split())}
    found = [None if text is None else order.get(instruction_digest(text)) for text in instructions]
    if lost := [row for row, index in enumerate(found) if index is None]:
        raise NoDifficulty(
            f"{len(lost)} of {len(found)} instructions are none of AlpacaEval's 805 (the first: "
            f"{str(instructions[lost[0]])[:60]!r}), so they have no difficulty"
        )
    rows: dict[int, int] = {}
    for row, index in enumerate(found):
        if index in rows:
            raise UserError(
                f"annotations, row {row}: the instruction of row {rows[index]} again ({instructions[row][:60]!r}); "
                "expected one annotation of each"
            )
        rows[index] = row
    return found


class NoDifficulty(Exception):
    """Why rows have no difficulties, and so no length control."""


def instruction_digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8")).hexdigest()[:12]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's remarks on rows that are counted here, and its libraries' on its own calls."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _offline(gamed: pd.DataFrame) -> Iterator[Any]:
    """The package's module for length control, reading our copy where it would ask the hub."""
    from alpaca_eval.metrics import glm_winrate

    fetch = glm_winrate.hf_hub_download
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "df_gamed.csv"
        # The package takes an instruction's difficulty from the row whose number is the instruction's index.
        turn = gamed.groupby("index").cumcount()
        gamed = gamed.assign(model="gamed", turn=turn).sort_values(["turn", "index"], kind="stable")
        gamed[["model", *GAMED]].to_csv(path, index=False)
        glm_winrate.hf_hub_download = lambda **_: str(path)
        try:
            yield glm_winrate
        finally:
            glm_winrate.hf_hub_download = fetch
