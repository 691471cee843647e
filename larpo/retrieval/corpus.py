"""Passages to retrieve from and queries to retrieve for, as rows of a file, a folder or a hub dataset."""

from collections.abc import Iterator
from typing import Annotated

import pandas as pd
from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, StringConstraints

from larpo.errors import ParameterError
from larpo.hashing import digest
from larpo.sources.rows import read

Id = Annotated[str, Field(coerce_numbers_to_str=True)]


class Passage(BaseModel, frozen=True):
    id: Id
    title: str | None = None
    text: Annotated[str, StringConstraints(pattern=r"\S")]

    @property
    def whole(self) -> str:
        return f"{self.title or ''} {self.text}".strip()


class Query(BaseModel):
    """`gold` are the ids of the passages that answer it, where somebody knows."""

    id: Id | None = None
    question: str
    answers: Annotated[list[Id], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = Field(
        min_length=1, validation_alias=AliasChoices("answers", "answer")
    )
    gold: list[Id] | None = None


def read_passages(data: str) -> Iterator[Passage]:
    """Passages in the source's order."""
    seen: set[str] = set()
    for where, passage in read(data, "passages with an id and a text that is not blank", Passage):
        if passage.id in seen:
            raise ParameterError("", f"{where}: passage id {passage.id!r} appears twice; expected each once")
        seen.add(passage.id)
        yield passage


def read_queries(data: str) -> pd.DataFrame:
    """Queries: query_id, question, answers (list) and gold (list of passage ids, or None)."""
    rows: dict[str, tuple] = {}
    for where, query in read(data, "queries with a question and a list of answers", Query):
        key = digest("query", query.question) if query.id is None else query.id
        if key in rows:
            raise ParameterError("", f"{where}: query id {key!r} appears twice; expected each once")
        rows[key] = key, query.question, query.answers, query.gold
    return pd.DataFrame(list(rows.values()), columns=["query_id", "question", "answers", "gold"])
