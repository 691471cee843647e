"""When two answers are equal as mathematics, and what counts as one answer in a vote."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

from larpo.rewards.answers import WORDS, boxed_number, braced, number, same_number, values

_ROUNDED = Fraction(1, 10**5)  # that a decimal may be off for a number that has none, such as 0.333333 for 1/3
_GROUPS = 8  # of braces around braces
_CHOICE = r"\s*\(([A-Z])\)\s*"
_STATED = re.compile(  # white space is bounded: a response may be a million of it
    r"(?:(?i:answer|choice|option)(?i:\s{1,3}is)?\s{0,3}:?|^)\s{0,8}\(?([A-Z])(?:\)|(?=[ \t]{0,3}[.,;]?[ \t]{0,3}$))",
    re.MULTILINE,
)
_PAIRS_PER_WORKER = 16  # a worker takes a second to start
Verdict = tuple[str | None, bool]
"""What was read from an answer, and whether it is the gold one."""


def compare(golds: Iterable[str], answers: Iterable[str | None]) -> list[Verdict]:
    """Each answer against its gold one: as text, as a choice's letter, as numbers, or as mathematics by `math-verify`,
    in a process that is ended where an expression takes too long (see larpo/rewards/math_worker.py)."""
    pairs = list(zip(golds, answers, strict=True))
    verdicts: dict[tuple[str, str | None], Verdict] = {
        pair: (pair[1], equal) for pair in dict.fromkeys(pairs) if (equal := plainly_equal(*pair)) is not None
    }
    open_pairs = [pair for pair in dict.fromkeys(pairs) if pair not in verdicts]
    judged = ask_math([(f"\\boxed{{{gold}}}", f"\\boxed{{{bare_group(answer)}}}") for gold, answer in open_pairs])
    verdicts |= {pair: (pair[1], equal) for pair, (_, equal, _) in zip(open_pairs, judged, strict=True)}
    return [verdicts[pair] for pair in pairs]


def plainly_equal(gold: str, answer: str | None) -> bool | None:
    """Whether an answer is the gold one, where that can be said without mathematics; None where it cannot."""
    if answer is None:
        return False
    if bare(bare_group(gold)) == bare(bare_group(answer)):
        return True
    if letter := re.fullmatch(_CHOICE, _unworded(gold)):
        # "(E) Hyperbola", "E", "E."; with another letter it is no choice.
        return re.findall(r"(?<![A-Za-z])\(?([A-Z])(?:\)|(?=\s*[.:]?\s*$))", _unworded(answer)) == [letter[1]]
    expected = number(gold)
    if same_number(expected, number(answer)) or (expected and same_number(expected, boxed_number(answer))):
        return True
    if expected and (found := number(answer)):
        # The library compares six decimals, which are all of a small number.
        x, y = values(found)[0], values(expected)[0]
        return None if abs(x - y) <= _ROUNDED * abs(y) else False
    return None


def stated_choice(gold: str, text: str) -> Verdict | None:
    """The choice that a text without a box names last, "The answer is **(B)**", against a gold one such as (B); None
    where the gold answer is no choice, or the text names none so."""
    gold = re.fullmatch(_CHOICE, _unworded(gold)) or re.fullmatch(r"([A-Z])", gold.strip())
    letters = _STATED.findall(re.sub(r"[*_$]+", "", _unworded(text))) if gold else []
    return (letters[-1], letters[-1] == gold[1]) if letters else None


def bare(text: str) -> str:
    return "".join(text.split())


def bare_group(text: str) -> str:
    """An answer without braces around the whole, some at most, and without the full stop of its sentence."""
    for _ in range(_GROUPS):
        text = re.sub(r"(?<![\\.])\.$", "", text.strip()).rstrip()
        if not text.startswith("{") or text != f"{{{(inside := braced(text))}}}":
            break
        text = inside
    return text


def _unworded(text: str) -> str:
    return re.sub(WORDS, r" \1 ", bare_group(text))


def ask_math(pairs: list[tuple[str, str]]) -> list[tuple[str | None, bool, str | None]]:
    """(what math-verify reads from the second text, whether it equals the first, its expression) per pair; nothing
    where the library takes too long: N pairs end within N seconds of processor time, on all processors together."""
    workers = min(len(os.sched_getaffinity(0)), -(-len(pairs) // _PAIRS_PER_WORKER))
    found: list[tuple[str | None, bool, str | None]] = [(None, False, None)] * len(pairs)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for i, verdicts in enumerate(pool.map(_ask_worker, [pairs[i::workers] for i in range(workers)])):
            found[i::workers] = [(None, False, None) if v is None else tuple(v) for v in verdicts]
    return found


def _ask_worker(pairs: list[tuple[str, str]]) -> list[Any]:
    worker = Path(__file__).with_name("math_worker.py")
    done = subprocess.run([sys.executable, str(worker)], input=json.dumps(pairs), capture_output=True, text=True)
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    if len(verdicts) != len(pairs):
        raise RuntimeError(f"math-verify's process ended early: {done.stderr[-300:]}")
    return verdicts


def vote_keys(answers: Iterable[str | None], mathematical: bool = False) -> dict[str, str]:
    """What each different answer counts as in a vote: a number by its value, an expression by its form."""
    texts = list(dict.fromkeys(a for a in answers if isinstance(a, str)))
    keys = {text: number(text) or bare(text) for text in texts}
    if mathematical:
        expressions = [text for text in texts if number(text) is None]
        read = ask_math([("1", f"\\boxed{{{text}}}") for text in expressions])
        keys |= {text: form for text, (_, _, form) in zip(expressions, read, strict=True) if form is not None}
    return keys
