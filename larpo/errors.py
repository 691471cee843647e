"""The exceptions that are told in one line, and how."""


class UserError(Exception):
    """A wrong input, told in one line that names the fix; commands print it and exit with code 2."""


class MachineError(Exception):
    """Nothing is wrong with the input, but the machine cannot go on now (a disk is full, another process is at work):
    told in one line, exit code 1. Trying again later makes sense."""


def one_line(error: BaseException | str) -> str:
    """An error as one line of printable text: a server, a table or a checkpoint may have written part of it, so line
    breaks become spaces, and characters that would steer a terminal are left out."""
    return "".join(c for c in " ".join(str(error).split()) if c.isprintable())
