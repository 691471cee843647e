"""Annotations as AlpacaEval publishes them: rows with instruction, output_1, output_2 and preference."""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, BeforeValidator, Field

from larpo.errors import UserError
from larpo.sources import rows

Preference = Annotated[float, Field(ge=0, le=2, strict=True)]


def _null(value: Any) -> Any:
    return None if value != value else value  # NaN, as Python writes it


class Annotation(BaseModel):
    instruction: str | None = None
    output_1: str | None = None
    output_2: str | None = None
    preference: Annotated[Preference | None, BeforeValidator(_null)]
    generator_1: str = "baseline"
    generator_2: str = "model"


def read_annotations(path: Path, baseline: dict[str, str]) -> pd.DataFrame:
    """A table with the columns of `Annotation`; an output that failed is empty and has no preference.

    Preferences that lie between 0 and 1 (the share that the model's output wins) are put on the package's scale from 1
    to 2. `baseline` (instruction → output) stands in for output_1 where rows lack it.
    """
    table = []
    for where, row in rows.read(path, "annotations with output_1, output_2 and preference", Annotation):
        row.output_1 = baseline.get(row.instruction) if row.output_1 is None else row.output_1
        for key in ("output_1", "output_2"):
            if getattr(row, key) is None and row.preference is not None:
                raise UserError(f"{where}: expected text under {key!r}, found null")
        table.append(row.model_dump() | {"where": where})
    frame = pd.DataFrame(table).astype({"preference": float})
    frame[["output_1", "output_2"]] = frame[["output_1", "output_2"]].fillna("")
    if len(models := frame["generator_2"].unique()) > 1:
        raise UserError(f"{path}: outputs of {len(models)} models ({models[0]}, {models[1]}, …); expected those of one")
    shares = frame["preference"].between(0.001, 0.999)
    if shares.any() and (frame["preference"] > 1).any():
        row = frame[shares].iloc[0]
        raise UserError(
            f"{row['where']}: preference: {row['preference']:g} is on a scale from 0 to 1, others are above 1; "
            "expected one scale, from 1 (baseline) to 2 (model)"
        )
    return frame.assign(preference=frame["preference"] + shares.any())
