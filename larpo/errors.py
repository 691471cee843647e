"""Errors that are told in one line: what is wrong, where it stands, and how to mend it."""

from __future__ import annotations

import contextlib
import difflib
import re
import reprlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


MANY = 40
"""So many names are still listed in a line."""


class UserError(Exception):
    """A wrong input, told in one line that names the fix; commands print it and exit with code 2."""


class ParameterError(UserError, ValueError):  # ValueError: so pydantic takes it from a section's own check
    """A wrong parameter. Whoever finds it names the key as far as they know it; `at` adds where that key stands.

    ParameterError("ns", "8 asked for, expected at most 4") inside `at("benchmarks.gsm8k.options")` inside
    `at(file="params.yaml")` is told as `params.yaml: benchmarks.gsm8k.options.ns: 8 asked for, expected at most 4`.
    """

    def __init__(self, key: str, reason: str, file: str = ""):
        super().__init__(key, reason, file)
        self.key, self.reason, self.file = key, reason, file

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.reason) if part)


class MachineError(Exception):
    """Nothing is wrong with the input, but the machine cannot go on now (a disk is full, another process is at work):
    told in one line, exit code 1. Trying again later makes sense."""


@contextlib.contextmanager
def at(section: str = "", file: str = "") -> Iterator[None]:
    """Parameters that are found wrong in this block stand in `section` of `file`. Where an inner block has named the
    file, the key is whole and nothing is added. Other errors pass as they are."""
    try:
        yield
    except ParameterError as error:
        if not error.file:
            error.key, error.file = ".".join(part for part in (section, error.key) if part), file
        raise


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or the list of names when none is close."""
    if not known:
        return "; there are none"
    if match := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {match[0]!r}?"
    return f"; expected one of {', '.join(sorted(known))}" if len(known) <= MANY else f"; {len(known)} names are known"


def unknown(key: str, name: str, known: Collection[str]) -> ParameterError:
    """The error for a name at `key` that is none of `known`."""
    return ParameterError(key, f"{name!r} does not exist{nearest(name, known)}")


def first_error(error: ValidationError, known: Collection[str] = ()) -> ParameterError:
    """The first thing that pydantic found wrong, as a parameter that is wrong.

    Parameters
    ----------
    known
        Names that may stand where an unknown key was found.
    """
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ParameterError(key, f"does not exist{nearest(str(first['loc'][-1]), known)}")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ParameterError):  # a section's own check, which names its key itself
        return ParameterError(".".join(part for part in (key, cause.key) if part), cause.reason)
    message = str(cause) if first["type"] == "value_error" else f"{first['msg'][0].lower()}{first['msg'][1:]}"
    # A password in an address is the only secret that a value may hold; the line ends up in logs.
    value = re.sub(r"//[^/@]*@", "//…@", reprlib.repr(first["input"]))
    return ParameterError(key, message if first["type"] == "missing" else f"{message}, found {value}")


def one_line(error: BaseException | str) -> str:
    """An error as one line of printable text: a server, a table or a checkpoint may have written part of it, so line
    breaks become spaces, and characters that would steer a terminal are left out. An error without words is told by
    its name."""
    words = " ".join(str(error).split()) or (type(error).__name__ if isinstance(error, BaseException) else "")
    return printable(words)


def printable(text: str) -> str:
    """A text that anyone may have written without what would steer a terminal, forge a line or turn its direction."""
    return "".join(c for c in text if c.isprintable())
