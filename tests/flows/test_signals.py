"""SIGTERM and SIGINT, to make and to the process that it started: one line, and nothing is left running."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import LOG, ROOT, Project

MAKE = ["make", "-o", ".venv/.ready"]  # the environment is taken as it is
RUN, SERVE, STUDY = [*MAKE, "run"], [*MAKE, "serve"], ["larpo", "study", "table3", "--seeds", "1"]
FLOW = ["python", "-m", "flows.run"]
slow = pytest.mark.faults  # each starts a server of its own


@pytest.fixture
def installed(project: Project) -> Project:
    """The small project with what make needs, this environment as its own."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, project.folder)
    shutil.copytree(ROOT / "requirements", project.folder / "requirements")
    (project.folder / ".venv").symlink_to(sys.prefix)
    return project


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize(
    ("command", "to", "line"),
    [
        pytest.param(RUN, "make", "stopped; `make run` goes on from here", id="make-run"),
        pytest.param(RUN, "process", "stopped; `make run` goes on from here", id="run"),
        pytest.param(FLOW, "process", "stopped", id="flow", marks=slow),
        pytest.param(STUDY, "process", "stopped; the same command runs what is missing", id="study", marks=slow),
        pytest.param(SERVE, "make", "Stopped.", id="make-serve", marks=slow),
        pytest.param(SERVE, "process", "Stopped.", id="serve", marks=slow),
    ],
)
def test_a_signal_ends_everything(installed: Project, command: list[str], to: str, line: str, number: int) -> None:
    printed = installed.folder.parent / "output"
    # As at a terminal: a make that runs these tests would have its own say (MAKELEVEL, MAKEFLAGS).
    foreign = ("PREFECT_", "MAKE", "MFLAGS")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    environment |= {LOG: str(installed.log), "LARPO_TEST_SLEEP": "policy"}
    environment["PATH"] = os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])
    with printed.open("w") as out:
        process = subprocess.Popen(
            # A shell's background jobs ignore SIGINT; a terminal's do not.
            ["env", "--default-signal=INT", *command],
            cwd=installed.folder,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_it_works(installed, process, printed, command)
        before = printed.read_text()
        hit = process.pid if to == "make" or command[0] != "make" else child(process.pid)
        os.kill(hit, number)
        process.wait(60)
        installed.wait_until_gone(10)
    finally:
        for left in installed.processes():
            left.kill()
    told = [text for text in printed.read_text().removeprefix(before).splitlines() if not text.startswith("make: ***")]
    assert told == [line]


def wait_until_it_works(project: Project, process: subprocess.Popen, printed: Path, command: list[str]) -> None:
    deadline = time.monotonic() + 250
    while not ("Ctrl-C ends" in printed.read_text() if command == SERVE else project.started()):
        assert process.poll() is None and time.monotonic() < deadline, printed.read_text()
        time.sleep(0.2)
    time.sleep(0.5)


def child(make: int) -> int:
    (found,) = psutil.Process(make).children()
    return found.pid
