"""`python -m larpo.workspace.foreground`: what `make run` does: mend, `dvc repro`, the scores.

DVC leaves its nodes running when a signal ends it, so it runs under a supervisor that ends them.
"""

import sys
from pathlib import Path

from larpo.errors import UserError, one_line
from larpo.report import summary
from larpo.workspace.dvc import environment
from larpo.workspace.dvc_lock import LOCK
from larpo.workspace.git import git
from larpo.workspace.mend import mend
from larpo.workspace.processes import end_on_signals, start, stop


def main() -> int:
    """Exit status: DVC's own where it fails, 130 where a signal ended it, 2 without a report."""
    end_on_signals()
    try:
        return run()
    except KeyboardInterrupt:
        print("stopped; `make run` goes on from here", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def run() -> int:
    for line in mend():
        print(line, flush=True)
    repro = start([sys.executable, "-P", "-m", "dvc", "repro"], cwd=Path(), env=environment())
    try:
        status = repro.wait()
    finally:
        stop(repro)
    if status == 0:
        summary.main()
        if git(".", "status", "--porcelain", "--", LOCK, check=False):
            print(f"next: git add {LOCK} && git commit -m run   (what experiments are then compared with)")
    return status


if __name__ == "__main__":
    sys.exit(main())
