"""The one exception that a wrong input raises."""


class UserError(Exception):
    """A wrong input, told in one line that names the fix; commands print it and exit with code 2."""
