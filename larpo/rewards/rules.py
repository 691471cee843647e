"""Rule-based rewards: 1 for a response whose final answer is the reference answer, else 0."""

from __future__ import annotations

import re
from decimal import Decimal
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
    """Common frame of the rules: parse, compare, one row per response."""

    needs_answers = True
    version = 1

    def parse(self, text: str) -> str | None:
        raise NotImplementedError

    def equal(self, parsed: str, answer: str) -> bool:
        raise NotImplementedError

    def score(self, messages: list[list[dict[str, str]]], answers: list[str], texts: list[str]) -> pd.DataFrame:
        """See `larpo.rewards.Reward`; also returns the column `parsed` (null where nothing was found)."""
        parsed = [self.parse(text) for text in texts]
        correct = [p is not None and self.equal(p, a) for p, a in zip(parsed, answers, strict=True)]
        return pd.DataFrame({"reward": [float(c) for c in correct], "correct": correct, "parsed": parsed})

    def facts(self) -> dict[str, Any]:
        return {"rule": type(self).__name__, "version": self.version}


class FinalNumber(_Rule):
    """The last number of the response equals the answer (lm-evaluation-harness calls this filter
    "flexible-extract")."""

    def parse(self, text: str) -> str | None:
        return last_number(text)

    def equal(self, parsed: str, answer: str) -> bool:
        return parsed == plain_number(answer)

    def score(self, messages: list[list[dict[str, str]]], answers: list[str], texts: list[str]) -> pd.DataFrame:
        # Such a prompt would score 0 whatever the policy answers, and nobody would notice.
        if wrong := [a for a in answers if plain_number(a) is None]:
            raise UserError(
                f"params.yaml: score.reward: final_number needs answers that are numbers, found {wrong[0][:60]!r} and "
                f"{len(wrong) - 1} more such rows; take exact_match or math, or set prompts.answer_field"
            )
        return super().score(messages, answers, texts)


class ExactMatch(_Rule):
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

    def parse(self, text: str) -> str | None:
        # The library's own time limit needs the main thread's signals; nodes score there.
        found = self._library.parse(text)
        return str(found[-1]) if found else None

    def score(self, messages: list[list[dict[str, str]]], answers: list[str], texts: list[str]) -> pd.DataFrame:
        gold = [self._library.parse(f"${a}$") for a in answers]
        found = [self._library.parse(t) for t in texts]
        correct = [bool(f) and bool(self._library.verify(g, f)) for g, f in zip(gold, found, strict=True)]
        parsed = [str(f[-1]) if f else None for f in found]
        return pd.DataFrame({"reward": [float(c) for c in correct], "correct": correct, "parsed": parsed})

    def facts(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {**super().facts(), "math-verify": version("math-verify")}
