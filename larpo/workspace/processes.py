"""Run a command so that nothing of it outlives the process that wanted it, not even after kill -9.

`start` puts a small supervisor between the caller and the command. The supervisor holds the reading end of a
pipe: when the caller closes it or dies, the supervisor ends the command and every descendant (first SIGTERM,
then SIGKILL). It lives in a session of its own, so that Ctrl-C in a terminal reaches the caller alone.

A command that nobody supervises, for a user may call DVC, ends by itself: `end_with_dvc`, `end_with_parent`. What a
user started ends on SIGINT and SIGTERM by `end_on_signals`.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

GRACE_SECONDS = 10.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl


class Stopped(Exception):
    """The command was ended, or never started, because its caller wants no more of them."""


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


class Commands:
    """Commands under supervisors, side by side; `stop` ends those that run and refuses further ones."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen] = set()

    def run(self, command: list[str], cwd: Path, environment: dict[str, str], say: Callable[[str], None]) -> int:
        """Exit status; `say` gets every line that is not empty, as it comes.

        Raises
        ------
        Stopped
        """
        with self._guard:
            if self.stopping.is_set():
                raise Stopped("stopped")
            process = start(
                command,
                cwd=cwd,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self._running.add(process)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line := line.rstrip():
                    say(line)
            status = process.wait()
        finally:
            with self._guard:
                self._running.discard(process)
            stop(process)
            process.stdout.close()
        if self.stopping.is_set():
            raise Stopped("stopped")
        return status

    def stop(self) -> None:
        with self._guard:
            self.stopping.set()
            running = list(self._running)
        for process in running:  # all of them are told before any is waited for
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in running:
            stop(process)


def end_with_parent() -> None:
    """End this process, by SIGKILL, when the one that started it ends (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_dvc() -> int:
    """End this process, which runs a stage of DVC, by SIGKILL, when DVC ends (Linux). Returns the process id of DVC.

    DVC removes a stage's outputs before it runs it, so what a node would still make after DVC was killed is lost in
    any case, and would only be in the way of the next run.

    DVC starts a shell. Bash makes itself the command (`exec`); dash, Debian's `sh`, waits for it, and lives on when
    DVC dies. Then a thread waits for the end of the shell's parent. Where DVC died before any of this was in place,
    the process ends at once.
    """
    end_with_parent()
    dvc = os.getppid()
    # A kernel without pidfd_open (before 5.3), or DVC is gone and so is the shell.
    with contextlib.suppress(OSError, psutil.Error):
        shell = psutil.Process(dvc)
        arguments = shell.cmdline()  # sh -c 'python -m tasks.NODE ...'
        if sys.platform == "linux" and "-c" in arguments and "-m tasks." in arguments[-1]:
            dvc = shell.ppid()
            process = os.pidfd_open(dvc)
            threading.Thread(target=_end_after, args=(process,), daemon=True, name="end-with-dvc").start()
    if _took_in(dvc):
        os.kill(os.getpid(), signal.SIGKILL)
    return dvc


def _took_in(parent: int) -> bool:
    """Whether that process only took this one in when DVC was gone: init, a user's systemd or a supervisor, which by
    DVC's record makes nothing. (In a container DVC may be process 1.)"""
    making = makers(Path()).values()
    if not making or parent in making:
        return False
    with contextlib.suppress(psutil.Error):
        command = psutil.Process(parent).cmdline()
        return parent == 1 or str(Path(__file__).resolve()) in command or any("systemd" in part for part in command[:1])
    return False


def makers(project: Path) -> dict[str, int]:
    """Output (an absolute path) → process of the DVC command that makes it, as DVC records it in .dvc/tmp/rwlock: those
    that were killed stand there too. None where there is no record, or it is half-written."""
    try:
        entries = json.loads((project / ".dvc/tmp/rwlock").read_text("utf-8")).get("write", {})
        return {path: entry["pid"] for path, entry in entries.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def end_on_signals() -> None:
    """From now on the first SIGINT or SIGTERM is a KeyboardInterrupt in the main thread, and further ones are nothing.

    Under make, whose process LARPO_MAKE names, so is a signal that reached make alone: make hands SIGTERM on and waits,
    but of SIGINT it expects that the terminal sent it to everybody.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, end)
    if make := os.environ.pop("LARPO_MAKE", None):
        threading.Thread(target=_end_with_make, args=(int(make),), daemon=True, name="end-with-make").start()


def _end_with_make(make: int) -> None:
    """Wait until make is gone or handles a SIGINT (it is then blocked until its children end), and pass that on."""
    handled = 0
    while handled < 2:  # for a moment it is blocked whenever make starts a command
        time.sleep(0.2)
        try:
            status = Path(f"/proc/{make}/status").read_text("ascii", "replace")
        except OSError:
            if sys.platform != "linux":
                return
            break
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        handled = handled + 1 if blocked >> (signal.SIGINT - 1) & 1 else 0
    os.kill(os.getpid(), signal.SIGINT)


def _end_after(process: int) -> None:
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Ended(BaseException):
    """In the supervisor: the caller is gone or wants the command gone."""


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


def supervise(command: list[str]) -> int:
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # descendants whose parent ends become ours, so that detached ones are found
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
    os._exit(supervise(sys.argv[1:]))
