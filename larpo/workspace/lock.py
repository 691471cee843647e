"""One process at a time: a lock that ends with its process and names it to whoever is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from larpo.errors import MachineError

WAIT_SECONDS = 10.0  # a process that was just killed needs a moment to die


class Lock:
    """`flock` on a file: it ends with its process, however that ends, so nothing has to be cleaned up.

    The file stays, for a file that is removed while another process waits for it would be locked twice.
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        # The soft lock that filelock falls back to outlives a process that is killed.
        self._lock = FileLock(path, fallback_to_soft=False, poll_interval=0.2, thread_local=False)

    def acquire(self, wait: float | None = None) -> None:
        """
        Raises
        ------
        MachineError
            Another process holds it, for longer than `wait` seconds (`WAIT_SECONDS`).
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=WAIT_SECONDS if wait is None else wait)
            self.path.write_text(str(os.getpid()), "ascii")
        except Timeout:
            holder = self.path.read_text("ascii", "replace")[:100].strip() or "unknown"
            raise MachineError(
                f"{self.what} is already being run in this folder, by process {holder}; wait until it is done, or end "
                f"it: kill {holder}"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(f"{self.what}: {self.path.parent} has no file locks; run it once at a time", flush=True)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
