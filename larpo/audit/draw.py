"""What an auditor draws by lot: rows that are computed again, nodes that are executed again.

Whoever makes a run must not know what will be looked at, so the seed is drawn when the audit starts; it is printed, and
the same seed draws the same. Every draw is a simple random sample without replacement: of N things of which k were
forged, a draw of n misses all with probability C(N − k, n) / C(N, n).
"""

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from larpo.hashing import seed_of

ROWS = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Draw:
    """`rows`: how many of each table of a model's outputs or numbers."""

    seed: int
    rows: int = ROWS

    def order(self, of: str, things: Sequence[T]) -> list[T]:
        """`things` in an order of their own for each question `of`."""
        drawn = list(things)
        random.Random(seed_of(self.seed, "audit", of)).shuffle(drawn)
        return drawn

    def some(self, of: str, strata: Sequence[Sequence[T]], most: int | None = None) -> list[T]:
        """At most `most` (`rows`) of the things in `strata`: as many of each stratum, all of a smaller one."""
        left, drawn = self.rows if most is None else most, []
        for i, stratum in enumerate(by_size := sorted(strata, key=len)):
            share = left // (len(by_size) - i)
            drawn += self.order(f"{of} {i}", stratum)[:share]
            left -= min(share, len(stratum))
        return drawn


def draw(seed: int | None = None, rows: int = ROWS) -> Draw:
    """By `seed`; without one by a seed that nobody can foresee."""
    return Draw(secrets.randbelow(2**32) if seed is None else seed, rows)
