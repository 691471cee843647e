"""MATH (Hendrycks et al. 2021) and its subset MATH-500: problems whose answer is a mathematical expression."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
from pydantic import model_validator

from larpo.benchmarks import problems
from larpo.benchmarks.verifiable import interval
from larpo.config.evaluation import BenchmarkParams
from larpo.config.params import Params
from larpo.errors import ParameterError
from larpo.rewards.answers import final_answer
from larpo.rewards.mathematics import compare, vote_keys


class Row(problems.Problem):
    problem: str
    answer: str | None = None
    solution: str | None = None

    @model_validator(mode="after")
    def has_an_answer(self) -> Row:
        if self.texts()[1] is None:
            raise ValueError("no `answer`, and no `solution` with a \\boxed one")
        return self

    def texts(self) -> tuple[str, str, str | None]:
        return self.problem, self.answer or final_answer(self.solution or ""), self.solution


class Math(problems.Problems):
    name, hub = "math", "HuggingFaceH4/MATH-500"
    instruction = r"Reason step by step, and put the final answer within \boxed{}."
    expected = "MATH rows with problem and answer (or solution)"
    row = Row
    votes = staticmethod(partial(vote_keys, mathematical=True))

    def __init__(self, params: Params, entry: BenchmarkParams):
        super().__init__(params, entry)
        if self.options.shots and not self.options.examples:
            raise ParameterError("options.examples", "shots need a file of worked examples; name one")

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """See `larpo.benchmarks.Benchmark`; an answer outside a box is not parsed."""
        answers = outputs["prompt_id"].map(items.set_index("prompt_id")["answer"])
        parsed = [final_answer(text) for text in outputs["text"]]
        scores = [float(equal) for _, equal in compare(answers, parsed)]
        return pd.DataFrame({"parsed": parsed, "score": scores}, index=outputs.index)

    def summary(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        return {
            "scores": {"boxed": interval(evaluations["score"])},
            "unparsed": float(evaluations["parsed"].isna().mean()),
        }
