"""A reward that is a plain function of one response: `def reward(prompt, response, answer) -> float`."""

import inspect
from collections.abc import Callable
from typing import Any

import pandas as pd

from larpo.errors import ParameterError, UserError

GIVEN = ("prompt", "messages", "response", "answer", "cut")
"""What a function may ask for by a parameter's name: the text of the last message, or all messages; the response; the
reference answer, or null; whether the response was cut off. Its other parameters are `score.options`."""


class Plain:
    """The function's value for each response. One that is annotated `-> bool` says right or wrong, as a rule does."""

    function: Callable[..., float]
    needs_answers = False
    verifiable = False

    def __init__(self, **options: Any):
        self.options = options
        known = inspect.signature(self.function).parameters
        self.asked = [name for name in GIVEN if name in known]
        if wrong := [name for name in options if name not in known or name in GIVEN]:
            raise TypeError(f"{wrong[0]!r} is no option of {self.function.__name__}{inspect.signature(self.function)}")
        needed = {n for n, p in known.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        if lost := sorted(needed - {*self.asked, *options}):
            raise TypeError(f"{self.function.__name__} needs {', '.join(lost)}; it is given {', '.join(GIVEN)}")

    def score(self, messages, answers, texts, *, groups=None, cut=None) -> pd.DataFrame:
        given = {
            "prompt": [m[-1]["content"] for m in messages],
            "messages": messages,
            "response": texts,
            "answer": answers,
            "cut": cut or [False] * len(texts),
        }
        rows = [dict(zip(self.asked, row, strict=True)) for row in zip(*(given[n] for n in self.asked), strict=True)]
        values = [self._value(i, row) for i, row in enumerate(rows)]
        right = [bool(v) if self.verifiable else None for v in values]
        found = {"reward": [float(v) for v in values], "correct": pd.Series(right, dtype=object)}
        return pd.DataFrame(found | ({"parsed": texts} if self.verifiable else {}))

    def _value(self, row: int, given: dict[str, Any]) -> float:
        value = self.function(**given, **self.options)
        if isinstance(value, bool | int | float):
            return value
        raise UserError(f"score.reward: {self.function.__name__} gave {value!r} for response {row}; expected a number")

    def taken(self) -> dict[str, int]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"reward": f"{self.function.__module__}:{self.function.__name__}", "options": self.options}


def plain(function: Callable[..., float]) -> type[Plain]:
    """The reward of a function."""
    signature = inspect.signature(function)
    if "response" not in signature.parameters:
        raise ParameterError(
            "",
            f"{function.__name__}{signature}: expected a parameter `response`, as in "
            "`def reward(prompt, response, answer) -> float`",
        )
    answer = signature.parameters.get("answer")
    return type(
        function.__name__,
        (Plain,),
        {
            "function": staticmethod(function),
            "needs_answers": answer is not None and answer.default is answer.empty,
            "verifiable": signature.return_annotation in (bool, "bool"),
        },
    )
