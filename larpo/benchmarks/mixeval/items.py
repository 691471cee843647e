"""MixEval's items, as a release has them, and responses to them that were made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from larpo.benchmarks.mixeval.rules import letters
from larpo.errors import UserError
from larpo.sources import rows

Key = tuple[str, str]
"""(problem type, id): an id stands for two items."""
KINDS = {"free-form": ("freeform",), "multiple-choice": ("multiplechoice", "multichoice")}
"""problem type → words of file names that say it"""


class Item(BaseModel):
    model_config = ConfigDict(extra="allow")
    problem_type: Literal["free-form", "multiple-choice"]
    prompt: str
    benchmark_name: str
    target: Annotated[list[Any], Field(min_length=1)]
    """Acceptable answers, or the index of the right option."""
    options: list[Any] | None = None
    context: str | None = None

    @model_validator(mode="after")
    def target_is_an_option(self) -> Item:
        if self.problem_type == "multiple-choice":
            if len(self.options or []) < 2:
                raise ValueError(f"options: expected a list of at least two, found {self.options!r}")
            if self.target not in [[i] for i in range(len(self.options))]:
                raise ValueError(f"target: expected a list of one index into the options, found {self.target!r}")
        return self

    def answer(self) -> str:
        """The first target, or the letter of the right option."""
        target = self.target[0]
        return str(target) if self.problem_type == "free-form" else letters(self.options)[target]

    def listed(self) -> str:
        """The options with their letters, a line each."""
        return "\n".join(f"{x}. {option}" for x, option in zip(letters(self.options), self.options, strict=True))


class Answered(BaseModel):
    """A row of responses, which may carry its item; a null response is what a failed request leaves."""

    model_config = ConfigDict(extra="allow")
    response: str | None
    id: int | str | None = None
    problem_type: str | None = None
    options: list[Any] | None = None
    target: Any = None
    prompt: str | None = None
    benchmark_name: str = "unnamed"


def read_release(data: str, hard: bool) -> dict[Key, Item]:
    """Items of a release's folder (with free-form.json and multiple-choice.json, or with the folders mixeval and
    mixeval-hard that have them), or of the hub."""
    folder, name = Path(data), "mixeval-hard" if hard else "mixeval"
    if not folder.exists():
        return _hub_items(data, hard)
    if not (folder / "free-form.json").is_file() and (folder / name).is_dir():
        folder = folder / name
    release = {}
    for kind in KINDS:
        path = folder / f"{kind}.json"
        if not path.is_file():
            raise UserError(f"{path}: not found; expected a folder with free-form.json and multiple-choice.json")
        content = rows.read_object(path, "an item per id")
        release |= {(kind, str(key)): _item(row, f"{path}, item {key}") for key, row in content.items()}
    return release


def _item(row: Any, where: str) -> Item:
    return rows.parse(row, Item, "an item as MixEval publishes them", where)


def _hub_items(data: str, hard: bool) -> dict[Key, Item]:
    """The hub's copy: one configuration per benchmark, one split per problem type, columns as in the files."""
    release, config = {}, "MixEval_Hard" if hard else "MixEval"
    for kind, split in zip(KINDS, ("free_form", "multiple_choice"), strict=True):
        for i, (where, row) in enumerate(rows.read(data, "MixEval's items", split=split, config=config)):
            if kind == "multiple-choice" and isinstance(row.get("target"), list):
                # One column for both types may hold the index as text.
                row["target"] = [int(t) if isinstance(t, str) and t.isdigit() else t for t in row["target"]]
            release[kind, str(row.get("id", i))] = _item(row, where)
    return release


def read_responses(path: Path, release: dict[Key, Item]) -> dict[Key, tuple[Item, str]]:
    """Items and responses of a file, or of a folder's files, free-form ones first.

    A row may carry its item (target, problem_type, options, benchmark_name, prompt); else the item is looked up by
    problem type and id in `release`. Without problem_type in a row, the file's name says it (free-form, freeform,
    multiple-choice, multichoice).
    """
    answered: dict[Key, tuple[Item, str]] = {}
    for file in _files(path) if path.is_dir() else [path]:
        for where, row in rows.read(file, "rows with id and response", Answered):
            kind = (
                row.problem_type or ("multiple-choice" if row.options else _kind(file)) or (row.target and "free-form")
            )
            if not kind:
                raise UserError(
                    f"{where}: no problem_type, and the file's name does not say it (an id stands for two items); add "
                    "problem_type to the rows, or name the file free-form.jsonl or multiple-choice.jsonl"
                )
            key = (kind, where if row.id is None else str(row.id))
            if key in answered:
                raise UserError(f"{where}: {kind} item {row.id} appears twice; expected each once")
            answered[key] = (_item_of(row, key, release, where), row.response or "")
    return answered


def _files(folder: Path) -> list[Path]:
    """Those that hold responses: not upstream's judgements and states beside them."""
    named = [p for p in sorted(folder.iterdir()) if {".json", ".jsonl"} & set(p.suffixes)]
    named = [p for p in named if _kind(p) and not p.name.startswith(("judge_results", "status"))]
    if not named:
        raise UserError(f"{folder}: no responses; expected free-form.jsonl and multiple-choice.jsonl")
    return sorted(named, key=_kind)


def _kind(file: Path) -> str | None:
    """The problem type that a file's name says."""
    name = file.name.lower().replace("-", "").replace("_", "")
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), None)


def _item_of(row: Answered, key: Key, release: dict[Key, Item], where: str) -> Item:
    """The item that a row answers: the release's where it is known, else what the row itself carries."""
    if not release:
        if row.target is None:
            raise UserError(f"{where}: no target; name the release's folder by --data, or add the item to the row")
        return _item(row.model_dump() | {"problem_type": key[0], "prompt": row.prompt or ""}, where)
    if key not in release:
        raise UserError(f"{where}: no {key[0]} item {row.id!r} in the folder that data names")
    if row.prompt not in (None, release[key].prompt):
        raise UserError(
            f"{where}: prompt {row.prompt[:60]!r} is not that of {key[0]} item {row.id} in the folder that data names; "
            "is it another release, or the other of mixeval and mixeval_hard?"
        )
    return release[key]
