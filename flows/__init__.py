"""Prefect runs the graph that DVC declares.

Settings that Prefect reads when it is imported: its state lies in the project's folder, telemetry is off.
"""

import os
import signal
import sys

from larpo.workspace import project_folder

__all__ = ["project_folder"]

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_HOME", str(project_folder() / ".prefect"))
# DVC's default, /var/tmp/dvc, is writable by every user of the machine, and DVC unpickles what lies there.
os.environ.setdefault("DVC_SITE_CACHE_DIR", str(project_folder() / ".dvc/tmp/site"))
# A run with overrides works in a clone that is removed; what a judge was paid for stays.
os.environ.setdefault("LARPO_JUDGEMENTS", str(project_folder() / "judgements"))
if sys.argv[0] == "-m":  # `python -m flows.NAME`: nothing runs before its main is there, so Ctrl-C is no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
