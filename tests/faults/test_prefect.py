"""Prefect under faults: a node that dies, a server that is gone for a while, a worker that is killed."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.server import api_url, free_port, healthy, running
from tests.flows.conftest import LOG, Project, make_project

pytestmark = pytest.mark.faults
PASSWORD = "larpo:of these tests"
ONCE = 'if os.environ.get("LARPO_TEST_SLEEP") == name and tries == 1:'


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Project:
    """The small project; the stage that LARPO_TEST_SLEEP names sleeps, when it is run for the first time."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LARPO_RETRY_DELAY_SECONDS", "0")
    project = make_project(tmp_path / "project", tmp_path / "log")
    stage = project.folder / "stage.py"
    text = stage.read_text()
    assert 'if os.environ.get("LARPO_TEST_SLEEP") == name:' in text
    stage.write_text(text.replace('if os.environ.get("LARPO_TEST_SLEEP") == name:', ONCE))
    project.call("git", "commit", "-qam", "sleep once")
    return project


@pytest.fixture
def server(project: Project) -> Iterator[dict[str, str]]:
    """The variables with which others find it."""
    port = free_port()
    with running(project.folder / ".prefect", port, PASSWORD, ui=False):
        yield {"PREFECT_API_URL": api_url(port), "PREFECT_API_AUTH_STRING": PASSWORD}


def start(project: Project, *command: str, **variables: str) -> subprocess.Popen:
    with (project.folder.parent / "output").open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=project.folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {LOG: str(project.log)} | variables,
        )


def output(project: Project) -> str:
    return (project.folder.parent / "output").read_text()


def until(project: Project, holds, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, output(project)
        time.sleep(0.1)


def running_with(project: Project, *words: str) -> list[psutil.Process]:
    return [p for p in project.processes() if all(any(w in part for part in p.cmdline()) for w in words)]


def serving(port: int) -> list[psutil.Process]:
    """Prefect's server and the supervisor above it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"server start --host 127.0.0.1 --port {port}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        process.kill()


def test_a_node_that_dies_is_tried_again_and_others_are_not(project, server):
    """kill -9 of the node alone: what a lost GPU or the kernel's out-of-memory killer do."""
    run = start(project, "flows.run", "--target", "train", LARPO_TEST_SLEEP="sample@1", **server)
    until(project, lambda: "sample@1" in project.started())
    kill(running_with(project, "stage.py", "data/sample/1.txt"))
    assert run.wait(90) == 0, output(project)
    assert sorted(project.started()) == ["policy", "prompts@1", "sample@1", "sample@1", "train@1"]
    assert "exit status -9" in output(project)


def test_a_server_that_is_restarted_in_the_middle(project):
    """kill -9 while a node runs, another server in its place: the run goes on, the next one finds all up to date."""
    port, home = free_port(), project.folder / ".prefect"
    url = api_url(port)
    variables = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": PASSWORD}
    with running(home, port, PASSWORD, ui=False):
        run = start(project, "flows.run", "--target", "train", LARPO_TEST_SLEEP="sample@1", **variables)
        until(project, lambda: "sample@1" in project.started())
        kill(serving(port))
        until(project, lambda: not healthy(url))
    with running(home, port, PASSWORD, ui=False):
        time.sleep(3)
        kill(running_with(project, "stage.py", "data/sample/1.txt"))
        assert run.wait(200) == 0, output(project)
        project.wait_until_gone(20)
        again = start(project, "flows.run", "--target", "train", **variables)
        assert again.wait(90) == 0, output(project)
        assert output(project).endswith("0 Completed, 0 Restored, 4 UpToDate\n")
    assert sorted(project.started()) == ["policy", "prompts@1", "sample@1", "sample@1", "train@1"]


def service(project: Project, port: int) -> subprocess.Popen:
    before = output(project).count("Ctrl-C ends") if (project.folder.parent / "output").exists() else 0
    process = start(project, "flows.serve", "--port", str(port), LARPO_TEST_SLEEP="sample@1")
    until(project, lambda: process.poll() is not None or output(project).count("Ctrl-C ends") > before, 180)
    assert process.poll() is None, output(project)
    return process


def states(project: Project, port: int) -> dict[str, str]:
    """Names of the flow runs and of their states."""
    password = (project.folder / ".prefect/auth").read_text()
    settings = {PREFECT_API_URL: api_url(port), PREFECT_API_AUTH_STRING: password}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        return {run.name: run.state.name for run in client.read_flow_runs(sort="START_TIME_DESC")}


def test_a_killed_worker_ends_the_service_and_the_next_one_goes_on(project):
    """No process is left; the run that was open is Crashed once the service is up again, and what it had finished is
    not run a second time."""
    port = free_port()
    deploy = ["prefect", "deployment", "run", "larpo/iterate", "--param", 'targets=["train"]']
    first = service(project, port)
    start(project, *deploy).wait(60)
    until(project, lambda: "sample@1" in project.started())
    second = start(project, "flows.serve", "--port", str(free_port()))
    assert second.wait(60) == 1
    assert re.search(rf"error: the service \(make serve\) is already .* by process {first.pid};", output(project))
    (worker,) = [p for p in running_with(project, "worker") if "processes.py" not in " ".join(p.cmdline())]
    worker.kill()
    assert first.wait(60) == 2
    assert "error: Prefect's worker ended by itself" in output(project)
    project.wait_until_gone(20)
    assert project.started().count("sample@1") == 1

    again = service(project, port)
    (name,) = states(project, port)
    assert states(project, port) == {name: "Crashed"} and f"Run {name} was still open" in output(project)
    done = start(project, *deploy, "--watch")
    assert done.wait(180) == 0, output(project)
    assert sorted(project.started()) == ["policy", "prompts@1", "sample@1", "sample@1", "train@1"]
    again.terminate()
    assert again.wait(60) == 0
    project.wait_until_gone(20)
