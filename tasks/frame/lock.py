"""One process at a time works in a node's scratch, and none goes on once the command that wanted it is dead."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from larpo.errors import MachineError

WAIT_SECONDS = 10.0  # a process that was just killed needs a moment to die
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """End this process, by SIGKILL, when the one that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_dvc() -> None:
    """End this process, which runs a stage of DVC, by SIGKILL, when DVC ends (Linux).

    DVC removes a stage's outputs before it runs it, so what a node would still make after DVC was killed is lost in
    any case, and would only be in the way of the next run.

    DVC starts a shell. Bash makes itself the command (`exec`); dash, Debian's `sh`, waits for it, and lives on when
    DVC dies. Then a thread waits for the end of the shell's parent.
    """
    end_with_parent()
    if sys.platform != "linux" or not _is_shell(shell := os.getppid()):
        return
    with contextlib.suppress(OSError):  # a kernel without pidfd_open (before 5.3), or DVC is gone and so is the shell
        dvc = os.pidfd_open(_parent_of(shell))
        threading.Thread(target=_end_after, args=(dvc,), daemon=True, name="end-with-dvc").start()


def _is_shell(process: int) -> bool:
    """It is the shell that DVC starts: `sh -c 'python -m tasks.NODE ...'`."""
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{process}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return b"-c" in arguments and b"-m tasks." in arguments[-1]
    return False


def _parent_of(process: int) -> int:
    # "PID (name) state parent ...", where the name may hold spaces and parentheses
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _end_after(process: int) -> None:
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


class Lock:
    """`flock` on a file: it ends with its process, however that ends, so nothing has to be cleaned up.

    The file stays, for a file that is removed while another process waits for it would be locked twice.
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        self._handle: int | None = None

    def acquire(self, wait: float | None = None) -> None:
        """
        Raises
        ------
        MachineError
            Another process holds it, for longer than `wait` seconds (`WAIT_SECONDS`).
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + (WAIT_SECONDS if wait is None else wait)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        holder = os.pread(handle, 100, 0).decode("ascii", "replace").strip() or "unknown"
                        raise MachineError(
                            f"{self.what} is already being run in this folder, by process {holder}; wait until it is "
                            f"done, or end it: kill {holder}"
                        ) from None
                    time.sleep(0.2)
                except OSError as error:
                    if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                        raise
                    print(f"{self.what}: {self.path.parent} has no file locks; run it once at a time", flush=True)
                    break
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
