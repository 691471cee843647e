"""Expressions that a policy may write by accident and that harm a parser or a computer algebra: from a seed."""

import random
from collections.abc import Callable

SIZE = 10**6
"""Characters of the longest ones."""


def _nested(r: random.Random) -> str:
    depth = r.choice((50, 500, 5_000))
    pairs = (("{", "}"), ("(", ")"), (r"\frac{1}{1+", "}"), (r"\sqrt{", "}"), (r"\left(", r"\right)"))
    opened, closed = r.choice(pairs)
    return opened * depth + "1" + closed * (depth - r.choice((0, 1, depth)))


def _tower(r: random.Random) -> str:
    base = r.randint(2, 99)
    return r.choice((f"{base}^{{{base}^{{{base}^{base}}}}}", f"({base}^{{{r.randint(10**5, 10**7)}}})^{{{base}}}"))


def _factorial(r: random.Random) -> str:
    n, k = r.randint(10**4, 10**9), r.randint(10**6, 10**7)
    return r.choice((f"{n}!", f"({r.randint(5, 99)}!)!!", rf"\binom{{{10**8}}}{{{k}}}"))


def _digits(r: random.Random) -> str:
    digits = "".join(r.choices("0123456789", k=r.choice((5_000, 100_000))))
    return r.choice((digits, f"0.{digits}", f"1/{digits}", f"1e{digits[:12]}", rf"\frac{{{digits}}}{{{digits[::-1]}}}"))


def _evaluated(r: random.Random) -> str:
    n = r.randint(1_000, 10**6)
    return r.choice(
        (
            rf"\int_0^1 \prod_{{k=1}}^{{{n}}} (x-k)^k dx",
            rf"\sum_{{k=1}}^{{{n}}} \frac{{1}}{{k^k}}",
            rf"\int \sin(x^{{{n}}}) e^{{\cos x}} \, dx",
            rf"\lim_{{x \to 0}} \frac{{\sin^{{{n}}} x}}{{x^{{{n}}}}}",
            rf"(x+y+z+w)^{{{n}}} - (x+y)^{{{n}}}",
        )
    )


def _backtracking(r: random.Random) -> str:
    """What a regular expression with two ways to read the same characters tries again and again."""
    k = r.choice((1_000, 20_000))
    plain, commands = (" ", "1 ", "1,000", "1,", "1/", "1:", "-"), (r"\boxed", r"\boxed{", r"\text{", r"\frac")
    piece = r.choice((*plain, *commands, "*_", "<think>"))
    return piece * k + r.choice(("", "!", "x"))


def _boxes(r: random.Random) -> str:
    return r"\boxed{1} " * r.choice((100, 20_000)) + r.choice((r"\boxed{", r"\boxed{}", ""))


def _unicode(r: random.Random) -> str:
    kinds = ((0x20, 0xD7FF), (0x1D400, 0x1D7FF), (0x202A, 0x202E), (0x200B, 0x200D), (0x660, 0x669))
    return "".join(chr(r.randint(*r.choice(kinds))) for _ in range(2_000))


def _long(r: random.Random) -> str:
    piece = r.choice(("7", "x+", "a ", r"\alpha ", "{}", "$", "\n", "½"))
    return piece * (SIZE // len(piece))


KINDS: list[Callable[[random.Random], str]] = [
    *(_nested, _tower, _factorial, _digits, _evaluated, _backtracking, _boxes, _unicode, _long)
]


def expressions(count: int, seed: int) -> list[str]:
    """`count` responses, of each kind in turn, half of them in a box."""
    r = random.Random(seed)
    made = [KINDS[i % len(KINDS)](r) for i in range(count)]
    return [rf"So it is \boxed{{{text}}}." if r.random() < 0.5 else f"So it is ${text}$." for text in made]
