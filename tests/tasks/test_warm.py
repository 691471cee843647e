"""Warm nodes: the same bytes as cold ones, their exit status, and nothing left when a client or the owner dies."""

import contextlib
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.frame import warm
from tests.conftest import Project


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_policy) -> Project:
    return Project(tmp_path_factory.mktemp("warm") / "project", tiny_policy)


@pytest.fixture
def project(home):
    yield home
    home.variables = {}
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


def servers() -> list[psutil.Process]:
    """Children that serve; one that has just ended has no command line any more."""
    living = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in living if "tasks.frame.warm" in p.cmdline()]


def forks() -> list[psutil.Process]:
    """Nodes that run now: grandchildren, forks of the server."""
    return [child for p in servers() for child in p.children()]


def ended(process: psutil.Process) -> bool:
    """Whether a process that is no child of this one ends within a while."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


def test_a_warm_node_makes_the_same_bytes_and_its_code_is_read_afresh(project, warm_nodes, tmp_path):
    """The cold one was told of a server that is not there: it starts as usual."""
    for module, *which in (("tasks.inputs",), ("tasks.prompts", "1")):
        done = node(project, module, *which, LARPO_WARM=str(tmp_path / "none"))
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


def test_a_client_that_was_killed_in_the_middle_of_its_request_leaves_the_server_and_its_streams(project, warm_nodes):
    """After the connection, after the request's length with the streams, within the request."""
    (server,) = [p.pid for p in servers() if warm_nodes["LARPO_WARM"] in p.cmdline()]
    for sent in (None, b"", b'{"module'):
        out, stream = os.pipe()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(warm_nodes["LARPO_WARM"])
            if sent is not None:
                socket.send_fds(client, [struct.pack("!I", 100)], [stream] * 3)
                client.sendall(sent)
        os.close(stream)
        assert select.select([out], [], [], 20)[0] and os.read(out, 1) == b"", "nobody holds it any more"
        os.close(out)
    (project.folder / "tasks/prompts.py").write_text(PARENT)
    assert int(node(project, "tasks.prompts", **warm_nodes).communicate()[0]) == server


PARENT = "import os\nprint(os.getppid())\n"


def test_a_server_whose_libraries_have_changed_serves_no_more(project, tmp_path):
    (tmp_path / "library.py").write_text("x = 1\n")
    (project.folder / "tasks/prompts.py").write_text(PARENT)
    with warm.server({"PYTHONPATH": str(tmp_path)}, ("library",)) as variables:
        (server,) = [p.pid for p in servers() if variables["LARPO_WARM"] in p.cmdline()]
        assert int(node(project, "tasks.prompts", **variables).communicate()[0]) == server
        (tmp_path / "library.py").write_text("x = 22\n")
        for _ in range(2):
            assert int(node(project, "tasks.prompts", **variables).communicate()[0]) == os.getpid(), "cold"


DVC = """
import os, subprocess, sys, time
for threads in "112":
    variables = {"DVC_STAGE": f"prompts@{threads}", "OMP_NUM_THREADS": threads}
    subprocess.run("python -m tasks.prompts", shell=True, env=os.environ | variables)
time.sleep(60)
"""


def test_dvc_has_a_server_of_its_own_for_each_environment_and_they_end_with_it(project):
    """A process that starts nodes as DVC does: two in one environment, one in another; then kill -9."""
    (project.folder / "tasks/prompts.py").write_text(PARENT)
    environment = {name: value for name, value in project.environment.items() if name != "LARPO_WARM"}
    dvc = subprocess.Popen(
        [sys.executable, "-c", DVC], cwd=project.folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    first, second, other = (int(dvc.stdout.readline()) for _ in range(3))
    assert first == second != other
    own = [psutil.Process(pid) for pid in (first, other)]
    for server in own:
        assert "tasks.frame.warm" in server.cmdline()
        address = Path(server.cmdline()[3])
        assert stat.S_ISSOCK(address.stat().st_mode) and stat.S_IMODE(address.parent.stat().st_mode) == 0o700
    dvc.kill()
    dvc.wait()
    assert all(map(ended, own))
    assert not address.exists()


def test_dvc_repro_is_warm_and_makes_the_bytes_of_cold_nodes(project):
    made = {}
    for warmth, variables in (("cold", {"LARPO_WARM": ""}), ("warm", {})):
        project.variables = variables
        out = project.dvc("repro", "--force", "prompts").stdout
        assert out.count("prompts@") >= 2
        made[warmth] = [(project.folder / f"data/prompts/{s}.parquet").read_bytes() for s in "12"]
    assert made["warm"] == made["cold"]


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
    assert ended(server)
