"""The studies' own problem: sums whose worked examples are often careless.

A model taught by them writes the careless answer more often than the right one, yet knows both, as a language model
knows what its corpus held: something to be aligned, small enough to repeat over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from larpo.hashing import unit_interval


def careless_sum(a: int, b: int) -> int:
    """The sum as written by somebody who forgets what is carried from the ones: 47 + 38 = 75, 85 + 77 = 152."""
    return 10 * (a // 10 + b // 10) + (a + b) % 10 if (a % 10 + b % 10) >= 10 else a + b


def sums(digits: int, careless: float, seed: int) -> Iterator[tuple[str, str, str]]:
    """(problem, answer, worked example) for every pair of numbers of `digits` digits, in an order of the seed's.

    Of the problems with something to carry from the ones, a share `careless`, chosen by a hash of the problem, has a
    careless worked example; the answer is always right.
    """
    low, high = 10 ** (digits - 1), 10**digits
    width = high - low
    for index in np.random.default_rng(seed).permutation(width * width).tolist():
        a, b = low + index // width, low + index % width
        text = f"{a}+{b}="
        worked = careless_sum(a, b) if unit_interval("careless", text) < careless else a + b
        yield text, str(a + b), str(worked)
