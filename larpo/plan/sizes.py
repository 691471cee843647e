"""Sizes of data: rows of a data set, counted where it lies here as a file, else known, else not known; and lengths of
generated problems where a character is a token."""

import gzip
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from larpo.config.params import Params
from larpo.config.sections import SourceParams
from larpo.plan.assumptions import Assumptions

COUNTED_BYTES = 256 * 2**20  # a larger text file is not read through for its rows


def is_file(data: str) -> bool:
    """Whether a data set's name means a file or folder of one's own, and no hub id (owner/name)."""
    suffixes = {".json", ".jsonl", ".gz", ".parquet"}
    return data.startswith((".", "/")) or Path(data).suffix in suffixes or data.count("/") != 1 or Path(data).exists()


def rows_of(data: str | None, a: Assumptions) -> int | None:
    """Rows of a hub data set or file; `items` of the assumptions goes before what is counted."""
    if data is None:
        return None
    if data in a.items:
        return a.items[data]
    return _counted(Path(data))


def _counted(path: Path) -> int | None:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_metadata(path).num_rows
        if path.suffix not in (".json", ".jsonl", ".gz") or path.stat().st_size > COUNTED_BYTES:
            return None
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            if path.name.removesuffix(".gz").endswith(".json") and file.read(1) == b"[":
                file.seek(0)
                return len(json.load(file))
            file.seek(0)
            return sum(1 for line in file if line.strip())
    except (OSError, ValueError):
        return None


def unknown_size(data: str, key: str) -> str:
    """Why a number is not known, and how to give it."""
    return f"{key}: the size of {data} is not known; --assume items.{data}=N"


DRAWN = 512  # problems whose lengths are looked at
GENERATORS = ("reasoning_gym", "sums")


def of_characters(params: Params, a: Assumptions) -> Assumptions:
    """With a model `scratch` on generated problems, lengths are not assumed: so many problems are drawn, and a
    character is a token, beside one per role and one before the answer (larpo/models/blank.py)."""
    if params.policy.model != "scratch" or params.prompts.source not in GENERATORS:
        return a
    lengths = _drawn(params.prompts.model_dump_json(include=set(SourceParams.model_fields)))
    found = replace(
        a,
        prompt_tokens=sum(prompt for prompt, _ in lengths) / len(lengths),
        longest_prompt_tokens=max(prompt for prompt, _ in lengths),
    )
    for section in params.sft.values():
        if section.data.source in GENERATORS:
            whole = _drawn(section.data.model_dump_json())
            return replace(found, sft_tokens=sum(map(sum, whole)) / len(whole))
    return found


@cache
def _drawn(source: str) -> list[tuple[int, int]]:
    """(tokens of the prompt, tokens of its solution and the end) of problems of a source, given as JSON."""
    from larpo.sources.prompts import draw

    params = SourceParams.model_validate_json(source)
    # Sums of one digit are 81 problems in all, of which a share is held out.
    count = 16 if params.source == "sums" and params.sums.digits == 1 else DRAWN
    frame = draw(params, count, 0, held_out=False)
    return [
        (sum(1 + len(m["content"]) for m in messages) + 1, len(solution) + 1)
        for messages, solution in zip(frame["messages"], frame["solution"], strict=True)
    ]
