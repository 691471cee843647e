"""The studies' own problem: sums whose worked examples are often careless.

A model taught by them writes the careless answer more often than the right one, yet knows both, as a language model
knows what its corpus held: something to be aligned, small enough to repeat over seeds.
"""

from collections.abc import Collection, Iterator

import numpy as np

from larpo.hashing import unit_interval


def careless_sum(a: int, b: int) -> int:
    """The sum as written by somebody who forgets what is carried from the ones: 47 + 38 = 75, 85 + 77 = 152."""
    return 10 * (a // 10 + b // 10) + (a + b) % 10 if (a % 10 + b % 10) >= 10 else a + b


def sums(digits: int, careless: float, seed: int, carry: bool = False) -> Iterator[tuple[str, str, str]]:
    """(problem, answer, worked example) for every pair of numbers of `digits` digits, in an order of the seed's.

    Of the problems with something to carry from the ones, a share `careless`, chosen by a hash of the problem, has a
    careless worked example; the answer is always right. With `carry` these problems alone.
    """
    low, high = 10 ** (digits - 1), 10**digits
    width = high - low
    for index in np.random.default_rng(seed).permutation(width * width).tolist():
        a, b = low + index // width, low + index % width
        if carry and careless_sum(a, b) == a + b:
            continue
        text = f"{a}+{b}="
        worked = careless_sum(a, b) if unit_interval("careless", text) < careless else a + b
        yield text, str(a + b), str(worked)


def errors(a: int, b: int) -> dict[str, str]:
    """Wrong answers to `a+b=` by kind; a hash of the problem chooses among those of a kind.

    careless    forgets what is carried from the ones; only where something is
    digit       one digit is another one, never that of the careless answer
    length      one digit is missing; only where there are two
    """
    right, careless, where = str(a + b), str(careless_sum(a, b)), f"{a}+{b}="
    others = [
        text
        for i, old in enumerate(right)
        for new in "0123456789"
        if new != old and (text := right[:i] + new + right[i + 1 :])[0] != "0" and text != careless
    ]
    shorter = sorted({right[:i] + right[i + 1 :] for i in range(len(right))})
    found = {} if careless == right else {"careless": careless}
    found["digit"] = _one(others, "digit", where)
    return found if len(right) == 1 else found | {"length": _one(shorter, "length", where)}


def _one(texts: list[str], *parts: str) -> str:
    return texts[int(unit_interval(*parts) * len(texts))]


def sum_pairs(digits: int, kinds: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """(problem, right answer, wrong answer) for every pair of numbers of `digits` digits and every one of `kinds` of
    `errors` that the problem has."""
    low, high = 10 ** (digits - 1), 10**digits
    for a in range(low, high):
        for b in range(low, high):
            for kind, wrong in errors(a, b).items():
                if kind in kinds:
                    yield f"{a}+{b}=", str(a + b), wrong
