"""Run one node with `dvc repro --single-item` and say what DVC did with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from larpo.workspace import processes as supervise
from larpo.workspace.mend import mend

Outcome = Literal["ran", "restored", "up-to-date"]
# What DVC says about a stage, before the stage's own command has printed anything.
VERDICTS: list[tuple[Outcome, str]] = [
    ("up-to-date", "Stage '{}' didn't change, skipping"),
    ("restored", "Stage '{}' is cached - skipping run, checking out outputs"),
    ("ran", "Running stage '{}':"),
]
LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
EXITED = re.compile(r"^ERROR: failed to reproduce .* exited with (-?\d+)")
LOCK_WAIT_SECONDS = 3600.0
BAD_INPUT = 2  # exit status of a command that refuses its input (tasks/frame/node.py)


class NodeFailed(Exception):
    """A node ended with an error; the message is the node's own last line."""


class BadInput(NodeFailed):
    """The node refused its input: the same input will be refused again."""


class Stopped(NodeFailed):
    """The run was cancelled while, or before, the node ran."""


@dataclass(frozen=True)
class Done:
    outcome: Outcome
    seconds: float


class Output:
    """Reads a node's output line by line and remembers what matters."""

    def __init__(self, name: str):
        self.verdicts = {text.format(name): outcome for outcome, text in VERDICTS}
        self.outcome: Outcome | None = None
        self.exit_status: int | None = None
        self.last = self.refusal = self.complaint = ""
        self.locked = False

    def read(self, line: str) -> None:
        if self.outcome is None:
            self.outcome = self.verdicts.get(line)
        if found := EXITED.match(line):
            self.exit_status = int(found[1])
        elif line.startswith("error:"):
            self.refusal = line.removeprefix("error:").strip()
        if line.startswith("ERROR:"):
            self.complaint = line.removeprefix("ERROR:").strip()
            self.locked |= bool(LOCKED.search(line))
        elif line.strip():
            self.last = line.strip()

    def failure(self, name: str, status: int) -> NodeFailed:
        """The error to raise: what the node said, or what DVC said where the node never started."""
        if self.outcome != "ran":
            return BadInput(f"{name}: {self.complaint or self.last or f'dvc ended with {status}'}")
        reason = self.refusal or self.last or self.complaint
        if self.exit_status == BAD_INPUT:
            return BadInput(f"{name}: {reason}")
        return NodeFailed(f"{name}: {reason} (exit status {self.exit_status})")


class NodeRunner:
    """Runs nodes of one DVC project; `stop` ends those that run and refuses further ones."""

    def __init__(self, folder: str | Path = "."):
        self.folder = Path(folder).resolve()
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen] = set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def run(self, name: str, say: Callable[[str], None] = print) -> Done:
        """Bring one node up to date, handing each output line to `say`.

        Waits while another DVC command holds the project's lock.

        Raises
        ------
        BadInput, NodeFailed, Stopped
        """
        start, delay = time.monotonic(), 0.5
        while True:
            for line in mend(self.folder):
                say(line)
            output, status = self._repro(name, say)
            if self.stopping:
                raise Stopped(f"{name}: stopped")
            if status == 0:
                if output.outcome is None:
                    raise RuntimeError(f"{name}: dvc did not say whether the stage ran; expected a line of VERDICTS")
                return Done(output.outcome, time.monotonic() - start)
            if not output.locked or time.monotonic() - start > LOCK_WAIT_SECONDS:
                raise output.failure(name, status)
            say(f"{name}: another dvc command holds the project, next try in {delay:.1f} s")
            self._stopping.wait(delay)
            delay = min(2 * delay, 15.0)

    def _repro(self, name: str, say: Callable[[str], None]) -> tuple[Output, int]:
        # Stages call `python`: the one that runs this must come first.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
        with self._guard:
            if self.stopping:
                raise Stopped(f"{name}: stopped before it started")
            process = supervise.start(
                command,
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self._running.add(process)
        output = Output(name)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                output.read(line.rstrip())
                if line.strip():
                    say(line.rstrip())
            return output, process.wait()
        finally:
            with self._guard:
                self._running.discard(process)
            supervise.stop(process)
            process.stdout.close()

    def stop(self) -> None:
        """End every running node with all its processes; nodes asked for later are refused."""
        with self._guard:
            self._stopping.set()
            running = list(self._running)
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
        for process in running:
            supervise.stop(process)
