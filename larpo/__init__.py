"""What LARPO computes and checks, room by room (README, Folders); only `workspace` and `audit` know the project's
folder."""

import contextlib
import sys

# A terminal or a pipe that has no "–" gets its escape, and nothing ends for it.
for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError, ValueError):
        stream.reconfigure(errors="backslashreplace")
