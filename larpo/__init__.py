"""What LARPO computes and checks, room by room (README, Folders); only `workspace` and `audit` know the project's
folder."""

import contextlib
import sys

# A terminal or a pipe that has no "–" gets its escape, and nothing ends for it. A fork has it from its parent, and its
# stream, which may have been a file there and be a pipe here, cannot be set again.
for stream in (sys.stdout, sys.stderr):
    if getattr(stream, "errors", "backslashreplace") != "backslashreplace":
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")
