"""Benchmarks of problems that have one right answer each: how a problem is put, and what is reported."""

from abc import ABC, abstractmethod
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, Field

from larpo.benchmarks import parse_options
from larpo.benchmarks.items import build_items, build_outputs, greedy
from larpo.benchmarks.verifiable import Votes, aggregate, check_ns
from larpo.config.evaluation import BenchmarkParams
from larpo.config.params import Params
from larpo.config.sections import Section
from larpo.errors import ParameterError, at
from larpo.hashing import digest
from larpo.rewards.mathematics import vote_keys
from larpo.sources import rows


class Options(Section):
    shots: int = Field(0, ge=0, description="worked examples put before the problem, as turns of the conversation")
    examples: str | None = Field(None, description="file that the examples are taken from; null: the hub's train split")
    system: str | None = None
    ns: list[Annotated[int, Field(ge=1)]] | None = Field(None, description="N of Pass@N; null: 1, 2, 4, … and all")


class Problem(BaseModel, ABC):
    """A row of the benchmark's data."""

    @abstractmethod
    def texts(self) -> tuple[str, str, str | None]:
        """The problem, the gold answer, and a worked solution where there is one."""


class Problems(ABC):
    """A benchmark whose problems are put word for word as `instruction` says."""

    name: str
    hub: str
    config: str | None = None
    instruction: str
    expected: str
    row: type[Problem]
    options_kind: type[Options] = Options
    read_options: dict[str, str] = {}
    votes: Votes = staticmethod(vote_keys)

    def __init__(self, params: Params, entry: BenchmarkParams):
        self.entry, self.options = entry, parse_options(self.options_kind, entry.options)
        with at("data"):
            self.source = self.hub if entry.data is None else rows.check_exists(entry.data)
        with at("options.examples"):
            self.examples = self.hub if self.options.examples is None else rows.check_exists(self.options.examples)
        check_ns(self.options.ns, entry)

    def items(self) -> pd.DataFrame:
        """One conversation per problem; `answer` is the bare gold answer."""
        before = [{"role": "system", "content": self.options.system}] if self.options.system else []
        for problem, _, worked in self._examples():
            before += [self.question(problem), {"role": "assistant", "content": worked}]
        with at("data"):
            found = rows.read(self.source, self.expected, self.row, split=self.entry.split, config=self.config)
            problems = [row.texts() for _, row in found]
        items = [(digest(self.name, p), self.name, [*before, self.question(p)], a, None) for p, a, _ in problems]
        return build_items(items, self.entry.items)

    def _examples(self) -> list[tuple[str, str, str]]:
        if not self.options.shots:
            return []
        with at("options"):
            found = rows.read(self.examples, self.expected, self.row, split="train", config=self.config)
            examples = [row.texts() for _, row in islice(found, self.options.shots)]
            if len(examples) < self.options.shots:
                raise ParameterError("shots", f"{self.options.shots} asked for, the examples are {len(examples)}")
            if any(worked is None for _, _, worked in examples):
                raise ParameterError("examples", f"{self.examples}: a row without a worked solution")
        return examples

    def question(self, problem: str) -> dict[str, str]:
        return {"role": "user", "content": f"{problem}\n\n{self.instruction}"}

    def read(self, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Items and outputs of rows as in the benchmark's data, each with a `response`, null where there is none."""

        class Answered(self.row):
            response: str | None

        found = [row for _, row in rows.read(path, f"{self.expected} and response", Answered)]
        items = [(str(i), self.name, [], row.texts()[1], None) for i, row in enumerate(found)]
        return build_items(items), build_outputs(row.response or "" for row in found)

    @abstractmethod
    def summary(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """`scores` and `unparsed` of greedy answers, one per item."""

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """Scores of the greedy answers; accuracy, Pass@N and strategies (see `verifiable.aggregate`). How a problem is
        put moves scores as much as a model may, so the template is among the metrics."""
        user = self.question(f"{{{next(iter(self.row.model_fields))}}}")["content"]
        template = {"system": self.options.system, "shots": self.options.shots, "user": user}
        scores = self.summary(items, greedy(evaluations))["scores"]
        return {"scores": scores, "template": template} | aggregate(evaluations, self.options.ns, self.votes)
