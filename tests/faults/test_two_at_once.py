"""Two runs at once in one project: the right result, or one line; never a mixture."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import larpo.workspace.lock
import tasks.sample
from larpo.errors import MachineError
from larpo.workspace.lock import Lock
from tasks.frame.warm import GPUS
from tests.conftest import Project
from tests.faults.kit import Running, assert_ended, assert_nothing_runs, assert_same, products, scratch_left

HOLDER = """
import time
from pathlib import Path
from larpo.workspace.lock import Lock
lock = Lock(Path("scratch/sample@1.lock"), "x")
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
BUSY = re.compile("is busy, it is being blocked by|Unable to acquire lock|is already being run in this folder")


@pytest.fixture
def project(tmp_path, finished_project) -> Project:
    return finished_project.copy(tmp_path / "project")


def test_a_node_that_runs_already_is_refused_and_a_dead_one_is_not_in_the_way(project, monkeypatch):
    """A process of its own holds the lock; with kill -9 it is free."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(larpo.workspace.lock, "WAIT_SECONDS", 0.3)
    expected = products(project.folder)
    other = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(MachineError, match=rf"^sample@1 is already being run .* by process {other.pid}; .*$"):
            tasks.sample.main("1")
        with pytest.raises(MachineError):
            Lock(project.folder / "scratch/sample@1.lock", "x").acquire(0)
        tasks.sample.main("2")  # another node is not concerned
    finally:
        other.kill()
        other.wait()
    tasks.sample.main("1")
    tasks.sample.main("1")  # and it is given back
    assert_same(products(project.folder), expected)


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_a_node_ends_with_the_dvc_that_runs_it(project, shell):
    """kill -9 of DVC alone: its node must not go on beside that of the next run, nor the server whose fork it is. Dash
    waits for its command and outlives DVC, bash becomes the command. (On a machine with a GPU the node starts cold.)"""
    if not (path := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed")
    module = project.folder / "tasks/prompts.py"
    module.write_text('import time\nprint("started", flush=True)\ntime.sleep(60)\n')
    running = Running(project, "-m", "dvc", "repro", "-s", "prompts@1", SHELL=path)
    assert running.wait_for(lambda: "started" in running.lines)
    everyone = running.tree()
    warm = [p for p in everyone if "tasks.frame.warm" in p.cmdline()]
    assert len(warm) == (0 if any(map(os.path.exists, GPUS)) else 2), "the server and the node, its fork"
    assert len(everyone) - len(warm) == (3 if Path(path).resolve().name == "dash" else 2)
    os.kill(running.process.pid, signal.SIGKILL)
    running.finish()
    assert_ended(everyone, 5)  # wherever they work
    assert_nothing_runs(project.folder, 5)


DVC = """
import json, os, subprocess, sys, time
record = {"write": {os.path.abspath("data/prompts/1.parquet"): {"pid": os.getpid(), "cmd": "dvc repro"}}}
open(".dvc/tmp/rwlock", "w").write(json.dumps(record))
subprocess.Popen(["sh", "-c", "sleep 1; exec python -m tasks.prompts 1"], env=os.environ | {"DVC_STAGE": "prompts@1"})
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize(("seconds", "runs"), [("0", False), ("20", True)])
def test_a_node_whose_dvc_died_before_it_looked_ends_too(project, seconds, runs):
    """DVC is killed while the interpreter of its node starts: whoever takes the node in is not DVC."""
    started = project.folder.parent / "started"
    (project.folder / "tasks/prompts.py").write_text(f"open({str(started)!r}, 'w').close()\n")
    running = Running(project, "-c", DVC, seconds, LARPO_WARM="")
    deadline = time.monotonic() + (30 if runs else 3)
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.kill("tree")
    running.finish()
    assert_nothing_runs(project.folder, 5)
    assert started.exists() == runs


@pytest.mark.faults
def test_two_commands_of_one_node(project, warm_nodes):
    """Both start within a moment: at most one is refused, in one line, and the bytes are right."""
    expected = products(project.folder)
    project.variables = warm_nodes
    for run in (["tasks.sample", "1"], ["tasks.train", "1"], ["tasks.score", "1"], ["tasks.report"]):
        both = [Running(project, "-m", *run) for _ in range(2)]
        ended = sorted(b.finish() for b in both)
        assert ended[0][0] == 0 and ended[1][0] in (0, 1), ended
        if ended[1][0]:
            assert re.search(r"^error: \S+ is already being run in this folder, by process \d+", ended[1][1], re.M)
        assert_same(products(project.folder), expected)
    assert scratch_left(project.folder) == []


@pytest.mark.faults
@pytest.mark.parametrize("other", [["dvc", "repro"], ["flows.run"]], ids=["dvc", "flow"])
def test_two_runs_of_the_graph(project, warm_nodes, other):
    """DVC locks what its stages read and write: the second run stops with DVC's line, or waits (the flow)."""
    expected = products(project.folder)
    project.variables = warm_nodes
    (project.folder / "dvc.lock").unlink()
    for path in (project.folder / ".dvc/cache/runs").iterdir():
        subprocess.run(["rm", "-rf", str(path)], check=True)
    first = Running(project, "-m", "dvc", "repro")
    assert first.wait_for(lambda: first.stages)
    time.sleep(0.5)
    second = Running(project, "-m", *other)
    ended = [first.finish(), second.finish()]
    for status, output in ended:
        assert status == 0 or BUSY.search(output), output
    project.dvc("repro")
    assert_same(products(project.folder), expected)
    assert scratch_left(project.folder) == []
    assert_nothing_runs(project.folder)
