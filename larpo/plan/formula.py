"""Numbers that are what their printed arithmetic gives: text and value cannot part."""

import ast
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

GIB = 2**30
_COMMENT = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"(?<=\d),(?=\d{3})")
_UNIT = re.compile(r"(?<![\d.])\b(?!min\b|max\b)[A-Za-z]+(?:/s)?")
_SIGNS = str.maketrans({"·": "*", "−": "-", "²": "**2"})
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS = {"min": min, "max": max}


@dataclass(frozen=True)
class Estimate:
    """A number that is computed from the formula beside which it is printed.

    Words in it are units, and what stands in brackets is a comment: `10 tokens · (2 · 1,000 + 4) · 4 B [logits]`.
    """

    unit: str
    formula: str
    value: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", evaluate(self.formula))


class Unknown(Estimate):
    """A number that is not known: `value` is None, and `formula` says why."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", None)


@cache
def evaluate(formula: str) -> float:
    """The value of a formula: + − · / ² ** min max and parentheses over numbers; ValueError for anything else."""
    text = _UNIT.sub("", _GROUPING.sub("", _COMMENT.sub("", formula))).translate(_SIGNS)
    try:
        return _compute(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError(f"no arithmetic: {formula}") from None


def _compute(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_compute(left), _compute(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_compute, arguments))
    raise ValueError(f"no arithmetic: {ast.unparse(node)}")


def number(value: float) -> str:
    """As it stands in a formula: 1234567 → 1,234,567; 0.4 → 0.4; 9.89e14 → 9.89e+14; seven digits of what is no whole
    number."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e12 else f"{value:.7g}"


def total(estimates: Iterable[Estimate]) -> float | None:
    """Sum; None where one is not known."""
    values = [e.value for e in estimates]
    return None if None in values else sum(values)


def gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value / GIB:.1f} GiB"
