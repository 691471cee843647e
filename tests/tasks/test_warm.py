"""Warm nodes: the same bytes as cold ones, their exit status, and nothing left when a client or the owner dies."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import Project


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_policy) -> Project:
    return Project(tmp_path_factory.mktemp("warm") / "project", tiny_policy)


@pytest.fixture
def project(home):
    yield home
    home.run("git", "checkout", "-q", "--", "tasks")


def node(project, *command: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=project.folder,
        env=project.environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def forks() -> list[psutil.Process]:
    """Nodes that run now: grandchildren, forks of the server."""
    servers = [p for p in psutil.Process().children() if "tasks.frame.warm" in p.cmdline()]
    return [child for p in servers for child in p.children()]


def test_a_warm_node_makes_the_same_bytes_and_its_code_is_read_afresh(project, warm_nodes, tmp_path):
    """The cold one was told of a server that is not there: it starts as usual."""
    done = node(project, "tasks.prompts", "1", LARPO_WARM=str(tmp_path / "none"))
    assert done.wait() == 0, done.stderr.read()
    cold = (project.folder / "data/prompts/1.parquet").read_bytes()
    done = node(project, "tasks.prompts", "1", **warm_nodes)
    out, err = done.communicate()
    assert (done.returncode, err) == (0, "") and "prompts@1: done" in out
    assert (project.folder / "data/prompts/1.parquet").read_bytes() == cold
    module = project.folder / "tasks/prompts.py"
    module.write_text(module.read_text().replace('"""Write data/prompts', 'print("edited")\n    """Write data/prompts'))
    assert "edited" in node(project, "tasks.prompts", "1", **warm_nodes).communicate()[0]


def test_a_refusal_keeps_its_line_and_status(project, warm_nodes):
    done = node(project, "tasks.candidates", "1", **warm_nodes)
    err = done.communicate()[1]
    assert done.returncode == 2 and err.startswith("error: data/sample/1.parquet: not found")


def test_a_node_ends_with_its_client(project, warm_nodes):
    """kill -9 of the client: the fork that works for it must not go on writing."""
    module = project.folder / "tasks/prompts.py"
    module.write_text('import time\nprint("started", flush=True)\ntime.sleep(60)\n')
    client = node(project, "tasks.prompts", "1", **warm_nodes)
    assert client.stdout.readline() == "started\n"
    (fork,) = forks()
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert not psutil.wait_procs([fork], timeout=10)[1]


def test_a_killed_node_is_a_failure(project, warm_nodes):
    module = project.folder / "tasks/prompts.py"
    module.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    client = node(project, "tasks.prompts", "1", **warm_nodes)
    assert client.wait(timeout=20) == 137


def test_the_server_ends_with_its_owner(tmp_path):
    """kill -9 of the owner closes the pipe that the server waits on."""
    code = (
        "import time; from tasks.frame import warm\n"
        "with warm.server(libraries=('json',)):\n  print('up', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert owner.stdout.readline().strip()
    (server,) = [p for p in psutil.Process(owner.pid).children() if "tasks.frame.warm" in p.cmdline()]
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
