"""MATH (Hendrycks et al. 2021) and its subset MATH-500: problems whose answer is a mathematical expression."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import model_validator

from larpo.benchmarks import problems
from larpo.benchmarks.verifiable import interval
from larpo.config.params import Params
from larpo.config.sections import BenchmarkParams
from larpo.errors import ParameterError


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` or `\fbox{…}` with balanced braces, or of `\boxed x`; None without one."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("oxed" if text.startswith("\\boxed", start) else "box")[2]
    if rest.startswith(" "):
        return rest.strip().split("$")[0].strip() or None
    if not rest.startswith("{"):
        return None
    depth = 0
    for i, c in enumerate(rest):
        escaped = i > 0 and rest[i - 1] == "\\"
        depth += (c == "{" and not escaped) - (c == "}" and not escaped)
        if depth == 0:
            return rest[1:i].strip() or None
    return None  # cut off inside the box


def equivalent(found: str | None, gold: str) -> bool:
    """Whether two answers are the same: as text without white space, or as mathematics (`math-verify`)."""
    if found is None:
        return False
    if "".join(found.split()) == "".join(gold.split()):
        return True
    from math_verify import parse, verify

    # Its time limit needs the main thread's signals; nodes and commands score there.
    a, b = (parse(f"\\boxed{{{x}}}") for x in (gold, found))
    return bool(a) and bool(b) and bool(verify(a, b))


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
        return self.problem, self.answer or last_boxed(self.solution or ""), self.solution


class Math(problems.Problems):
    name, hub = "math", "HuggingFaceH4/MATH-500"
    instruction = r"Reason step by step, and put the final answer within \boxed{}."
    expected = "MATH rows with problem and answer (or solution)"
    row = Row

    def __init__(self, params: Params, entry: BenchmarkParams):
        super().__init__(params, entry)
        if self.options.shots and not self.options.examples:
            raise ParameterError("options.examples", "shots need a file of worked examples; name one")

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """See `larpo.benchmarks.Benchmark`; an answer outside a box is not parsed."""
        answers = outputs["prompt_id"].map(items.set_index("prompt_id")["answer"])
        parsed = [last_boxed(text) for text in outputs["text"]]
        # Samples repeat their answers, and comparing two expressions takes milliseconds.
        pairs = {pair: equivalent(*pair) for pair in set(zip(parsed, answers, strict=True))}
        scores = [float(pairs[pair]) for pair in zip(parsed, answers, strict=True)]
        return pd.DataFrame({"parsed": parsed, "score": scores}, index=outputs.index)

    def summary(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        return {
            "scores": {"boxed": interval(evaluations["score"])},
            "unparsed": float(evaluations["parsed"].isna().mean()),
        }
