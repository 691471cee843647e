"""Rule-based rewards: 1 for a response whose final answer is the reference answer, else 0; or how close it comes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from decimal import Decimal, localcontext
from importlib.metadata import version
from typing import Any

import pandas as pd

from larpo.errors import UserError
from larpo.rewards.answers import (
    boxes,
    final_answer,
    final_number,
    number,
    same_number,
    values,
    without_echoes,
    without_reasoning,
)
from larpo.rewards.mathematics import ask_math, compare, stated_choice, vote_keys


class _Rule:
    """Common frame of the rules."""

    needs_answers = True
    verifiable = True
    version = 1
    graded = False  # whether `value` takes more than two values

    def unusable(self, answers: list[str | None]) -> tuple[list[int], str]:
        """Rows whose reference answer no response can have, and what is expected of one."""
        return [i for i, a in enumerate(answers) if a is None or not a.strip()], "text that is not blank"

    def votes(self, parsed: Iterable[str | None]) -> dict[str, str]:
        """What each different parsed answer counts as in a majority vote: a number by its value."""
        return vote_keys(parsed)

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
    """The number that is the response's final answer, by `larpo.rewards.answers.final_number`, equals the answer."""

    name = "final_number"
    version = 5

    def parse(self, text: str) -> str | None:
        return final_number(text)

    def equal(self, parsed: str, answer: str) -> bool:
        return same_number(parsed, number(answer))

    def unusable(self, answers: list[str | None]) -> tuple[list[int], str]:
        return [i for i, a in enumerate(answers) if a is None or number(a) is None], "a number"

    def score(self, messages, answers, texts, **context) -> pd.DataFrame:
        # Such a prompt would score 0 whatever the policy answers, and nobody would notice.
        if wrong := [a for a in answers if number(a) is None]:
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
        if self.equal(parsed, answer):
            return 0.0
        off = min(abs(x - y) for x in values(parsed) for y in values(number(answer)))
        with localcontext() as context:
            # Enough digits that no difference of two long numbers is rounded away.
            context.prec = max(28, len(parsed) + len(answer))
            digits = (1 + Decimal(off.numerator) / off.denominator).log10()
        return max(self.floor, -float(digits))

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "floor": self.floor}


class ExactMatch(_Compared):
    """The response is the answer, up to case and white space."""

    def votes(self, parsed: Iterable[str | None]) -> dict[str, str]:
        return {text: text for text in parsed if isinstance(text, str)}

    def parse(self, text: str) -> str | None:
        return " ".join(text.lower().split()) or None

    def equal(self, parsed: str, answer: str) -> bool:
        return parsed == " ".join(answer.lower().split())


class MathEquivalence(_Rule):
    """Mathematical equivalence of the final expression (LaTeX, fractions, sets): that in the last box, or else the
    choice that the response names, or what `math-verify` finds in it outside its reasoning."""

    version = 6

    def score(self, messages, answers, texts, *, groups=None, cut=None) -> pd.DataFrame:
        rest = [None if c else without_reasoning(t) for t, c in zip(texts, cut or [False] * len(texts), strict=True)]
        boxed = [None if text is None else any(True for _ in boxes(text)) for text in rest]
        verdicts = dict(self._boxed([i for i, b in enumerate(boxed) if b], rest, answers))
        verdicts |= self._found([i for i, b in enumerate(boxed) if b is False], rest, answers)
        parsed, correct = zip(*[verdicts.get(i, (None, False)) for i in range(len(texts))], strict=True)
        return pd.DataFrame({"reward": map(float, correct), "correct": correct, "parsed": parsed})

    def votes(self, parsed: Iterable[str | None]) -> dict[str, str]:
        return vote_keys(parsed, mathematical=True)

    def _boxed(self, rows: list[int], texts: list[str], answers: list[str]) -> dict[int, tuple[str | None, bool]]:
        return dict(zip(rows, compare([answers[i] for i in rows], [final_answer(texts[i]) for i in rows]), strict=True))

    def _found(self, rows: list[int], texts: list[str], answers: list[str]) -> dict[int, tuple[str | None, bool]]:
        chosen = {i: choice for i in rows if (choice := stated_choice(answers[i], texts[i]))}
        rows = [i for i in rows if i not in chosen]
        pairs = [(f"${answers[i]}$", without_echoes(texts[i])) for i in rows]
        return chosen | {i: verdict[:2] for i, verdict in zip(rows, ask_math(pairs), strict=True)}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "math-verify": version("math-verify")}
