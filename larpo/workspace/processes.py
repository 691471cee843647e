"""Run a command so that nothing of it outlives the process that wanted it, not even after kill -9.

`start` puts a small supervisor between the caller and the command. The supervisor holds the reading end of a
pipe: when the caller closes it or dies, the supervisor ends the command and every descendant (first SIGTERM,
then SIGKILL). It lives in a session of its own, so that Ctrl-C in a terminal reaches the caller alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

GRACE_SECONDS = 10.0
PR_SET_CHILD_SUBREAPER = 36


class Ended(BaseException):
    """The caller is gone or wants the command gone."""


def start(command: list[str], **options: Any) -> subprocess.Popen:
    """Start `command` under a supervisor. `options` go to Popen; the process's stdin belongs to `stop`."""
    argv = [sys.executable, "-P", str(Path(__file__).resolve()), *command]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, **options)


def stop(process: subprocess.Popen) -> int:
    """End the command with all its descendants, wait for it, and return its exit status."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        return process.wait(GRACE_SECONDS + 10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _adopt_orphans() -> None:
    """Make descendants whose parent ends ours (Linux), so that a detached one is still found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_descendants(grace: float) -> None:
    alive = psutil.Process().children(recursive=True)
    for process in alive:
        _send(process, signal.SIGTERM)
    psutil.wait_procs(alive, timeout=grace)
    while alive := psutil.Process().children(recursive=True):
        for process in alive:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=1)


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _watch_caller() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _raise_ended(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Ended


def main(command: list[str]) -> int:
    _adopt_orphans()
    signal.signal(signal.SIGTERM, _raise_ended)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        threading.Thread(target=_watch_caller, daemon=True).start()
        status = child.wait()
    except Ended:
        status = -signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_descendants(GRACE_SECONDS if status == -signal.SIGTERM else 1.0)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # os._exit: the watching thread still blocks in a read, and nothing is left to clean up.
    os._exit(main(sys.argv[1:]))
