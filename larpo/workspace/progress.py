"""What a long command prints while it works: lines, which logs keep, and no bars, which redraw them."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def say(line: str) -> None:
    print(line, flush=True)


def progress(items: list[T], what: str, unit: str = "rows", size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """Iterate with a line at most every ten seconds: how much, how fast, time left."""
    total, done, start, spoken = sum(map(size, items)), 0, time.perf_counter(), time.perf_counter()
    for item in items:
        yield item
        done += size(item)
        now = time.perf_counter()
        if now - spoken > 10 or (done == total and now - start > 10):
            spoken, rate = now, done / (now - start)
            say(f"{what}: {done}/{total} {unit}, {rate:.1f} {unit}/s, {(total - done) / rate:.0f} s left")
