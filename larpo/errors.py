"""The exceptions that are told in one line."""


class UserError(Exception):
    """A wrong input, told in one line that names the fix; commands print it and exit with code 2."""


class MachineError(Exception):
    """Nothing is wrong with the input, but the machine cannot go on now (a disk is full, another process is at work):
    told in one line, exit code 1. Trying again later makes sense."""
