"""The one exception that a wrong input raises, and how it is told."""


class UserError(Exception):
    """A wrong input, told in one line that names the fix; commands print it and exit with code 2."""


def one_line(error: BaseException | str) -> str:
    """An error as one line of printable text: a server, a table or a checkpoint may have written part of it, so line
    breaks become spaces, and characters that would steer a terminal are left out."""
    return "".join(c for c in " ".join(str(error).split()) if c.isprintable())
