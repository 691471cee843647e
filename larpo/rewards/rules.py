"""Rule-based rewards: 1 for a response whose final answer is the reference answer, else 0; or how close it comes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from decimal import Decimal, localcontext
from typing import Any

import pandas as pd

from larpo.errors import UserError

# A number with optional sign, thousands separators and decimals; not part of a longer word or number
# ("1.5e5" and "1.2.3" hold none).
_NUMBER = re.compile(r"(?<![\w.])[-−]?\$?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\w|\.\d)")
_PLAIN = re.compile(r"[-−+]?\$?(?:(?:\d{1,3}(?:,\d{3})+|\d+)\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")


def last_number(text: str) -> str | None:
    """The last number of a text in plain form ("1,234.50" → "1234.5"), None where there is none.

    A minus sign counts when it touches the number and no digit or letter stands before it ("5-3" holds
    5 and 3).
    """
    found = [m.group() for m in _NUMBER.finditer(text)]
    return plain_number(found[-1]) if found else None


def plain_number(text: str) -> str | None:
    """Canonical form of one number, exact at any length; None when the text is no number ("1,2,3", "1/2")."""
    if not _PLAIN.fullmatch(text.strip()):
        return None
    # No arithmetic: it would round to 28 digits, and two long numbers would become equal.
    plain = format(Decimal(text.strip().replace(",", "").replace("$", "").replace("−", "-")), "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain == "-0" else plain


class _Rule:
    """Common frame of the rules."""

    needs_answers = True
    verifiable = True
    version = 1
    graded = False  # whether `value` takes more than two values

    def taken(self) -> dict[str, int]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"rule": type(self).__name__, "version": self.version}


class _Compared(_Rule, ABC):
    """Parse, compare, one row per response."""

    @abstractmethod
    def parse(self, text: str) -> str | None:
        """The answer in a response, None where there is none."""

    @abstractmethod
    def equal(self, parsed: str, answer: str) -> bool:
        """Whether a parsed answer is the reference answer."""

    def value(self, parsed: str | None, answer: str) -> float:
        """Reward of a parsed answer; None is no answer."""
        return float(parsed is not None and self.equal(parsed, answer))

    def score(
        self,
        messages: list[list[dict[str, str]]],
        answers: list[str],
        texts: list[str],
        *,
        groups: list[str] | None = None,
        cut: list[bool] | None = None,
    ) -> pd.DataFrame:
        """See `larpo.rewards.Reward`; also returns the column `parsed` (null where nothing was found)."""
        # A response that was cut off gave no final answer, whatever stands last in it.
        parsed = [None if c else self.parse(t) for t, c in zip(texts, cut or [False] * len(texts), strict=True)]
        correct = [p is not None and self.equal(p, a) for p, a in zip(parsed, answers, strict=True)]
        rewards = [self.value(p, a) for p, a in zip(parsed, answers, strict=True)]
        return pd.DataFrame({"reward": rewards, "correct": correct, "parsed": parsed})


class FinalNumber(_Compared):
    """The last number of the response equals the answer (lm-evaluation-harness calls this filter
    "flexible-extract")."""

    name = "final_number"

    def parse(self, text: str) -> str | None:
        return last_number(text)

    def equal(self, parsed: str, answer: str) -> bool:
        return parsed == plain_number(answer)

    def score(self, messages, answers, texts, **context) -> pd.DataFrame:
        # Such a prompt would score 0 whatever the policy answers, and nobody would notice.
        if wrong := [a for a in answers if plain_number(a) is None]:
            raise UserError(
                f"params.yaml: score.reward: {self.name} needs answers that are numbers, found {wrong[0][:60]!r} and "
                f"{len(wrong) - 1} more such rows; take exact_match or math, or set prompts.answer_field"
            )
        return super().score(messages, answers, texts, **context)


class Closeness(FinalNumber):
    """How close the last number x comes to the answer y: −log10(1 + |x − y|), at least `floor`.

    0 is right, −1 is 9 off, −2 is 99 off: a graded relevance that list objectives can rank. No number, a response
    that was cut off, and anything further off than 10^−floor − 1 get `floor`. `correct` is that of final_number.
    """

    name = "closeness"
    graded = True

    def __init__(self, floor: float = -4.0):
        if not floor < 0:
            raise UserError(f"params.yaml: score.options.floor: expected a number below 0, found {floor}")
        self.floor = float(floor)

    def value(self, parsed: str | None, answer: str) -> float:
        if parsed is None:
            return self.floor
        x, y = Decimal(parsed), Decimal(plain_number(answer))
        with localcontext() as context:
            # Enough digits that no difference of two long numbers is rounded away.
            context.prec = max(28, len(parsed) + len(answer))
            off = abs(x - y)
        return max(self.floor, -float((1 + off).log10())) if off else 0.0

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "floor": self.floor}


class ExactMatch(_Compared):
    """The response is the answer, up to case and white space."""

    def parse(self, text: str) -> str | None:
        return " ".join(text.lower().split()) or None

    def equal(self, parsed: str, answer: str) -> bool:
        return parsed == " ".join(answer.lower().split())


class MathEquivalence(_Rule):
    """Mathematical equivalence of the final expression (LaTeX, fractions, sets) by `math-verify`."""

    def __init__(self) -> None:
        import math_verify

        self._library = math_verify

    def score(self, messages, answers, texts, *, groups=None, cut=None) -> pd.DataFrame:
        # The library's own time limit needs the main thread's signals; nodes score there.
        gold = [self._library.parse(f"${a}$") for a in answers]
        found = [[] if c else self._library.parse(t) for t, c in zip(texts, cut or [False] * len(texts), strict=True)]
        correct = [bool(f) and bool(self._library.verify(g, f)) for g, f in zip(gold, found, strict=True)]
        parsed = [str(f[-1]) if f else None for f in found]
        return pd.DataFrame({"reward": [float(c) for c in correct], "correct": correct, "parsed": parsed})

    def facts(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {**super().facts(), "math-verify": version("math-verify")}
