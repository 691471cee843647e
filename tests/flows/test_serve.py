"""`make serve`: a real server, work pool, deployment and worker; nothing is left when it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import port_is_free
from larpo.studies.expand import names
from tests.conftest import Project
from tests.flows.conftest import NODES, ROOT, Serving
from tests.larpo.audit.forgery import flip


@pytest.fixture
def plain() -> dict[str, str]:
    """The environment of another shell: nothing of Prefect's is set."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}


def test_a_taken_port_is_one_line(serving: Serving, plain: dict[str, str]) -> None:
    command = [sys.executable, "-m", "flows.serve", "--port", str(serving.port)]
    done = subprocess.run(command, cwd=serving.project.folder, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = f"error: port {serving.port} on 127.0.0.1 is taken by another program; choose another with --port\n"
    assert done.stderr == expected


def test_nothing_listens_but_on_loopback(serving: Serving) -> None:
    parent = psutil.Process(serving.process.pid)
    heard = [
        connection.laddr
        for process in (parent, *parent.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert serving.port in {address.port for address in heard}
    assert {address.ip for address in heard} <= {"127.0.0.1", "::1"}


def test_every_study_has_a_deployment(serving: Serving) -> None:
    """As the server knows them."""
    with temporary_settings({PREFECT_API_URL: serving.url}), get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        deployed = {(flows[d.flow_id], d.name): d for d in client.read_deployments()}
    studies = names(ROOT / "studies")
    expected = {("larpo", "iterate"), ("larpo-audit", "default"), *(("larpo-study", name) for name in studies)}
    assert set(deployed) == expected and len(studies) > 9
    assert all(deployed["larpo-study", name].parameters == {"name": name} for name in studies)
    # What the form of the UI is made from.
    for deployment in deployed.values():
        assert all(one.get("description") for one in deployment.parameter_openapi_schema["properties"].values())
    overrides = deployed["larpo", "iterate"].parameter_openapi_schema["properties"]["overrides"]
    assert "docs/params.md" in overrides["description"]
    (pattern,) = (kind["items"]["pattern"] for kind in overrides["anyOf"] if kind["type"] == "array")
    good, bad = ["a.b=1", "+a=[1,2]", "~a.b", "lists.memory=all"], ["a", "a b=1", "=1"]
    assert [bool(re.search(pattern, text)) for text in good + bad] == [True] * len(good) + [False] * len(bad)


def test_the_deployed_audit_fails_and_names_what_is_wrong(
    serving: Serving, plain: dict[str, str], finished_project: Project, tmp_path: Path
) -> None:
    """Of another folder than the worker's, with one bit changed."""
    copy = finished_project.copy(tmp_path / "copy")
    flip(copy.folder / "data/policy/2/model.safetensors")
    command = [sys.executable, "-m", "prefect", "deployment", "run", "larpo-audit/default", "--watch"]
    command += ["--param", f"run={json.dumps(str(copy.folder))}", "--param", "again=false"]
    done = subprocess.run(
        command, cwd=serving.project.folder, env=plain, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((serving.project.folder / "report/audit.json").read_text("utf-8"))
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert verdicts["outputs"] == "fails" and verdicts["parameters"] == verdicts["lists"] == "holds"
    output = serving.output.read_text()
    assert "outputs: data/policy/2/model.safetensors: " in output and "lists: holds" in output
    assert (serving.project.folder / "report/audit.html").is_file()
    assert not (copy.folder / "report/audit.json").exists(), "the audited folder is left alone"


# Last: it ends the server that the other tests use.
def test_deployment_runs_and_nothing_is_left(serving: Serving, plain: dict[str, str]) -> None:
    project = serving.project
    command = [sys.executable, "-m", "prefect", "deployment", "run", "larpo/iterate"]
    command += ["--watch"]
    # No address is given: the project's prefect.toml leads to the server.
    env = plain | {"COLUMNS": "300"}
    done = subprocess.run(command, cwd=project.folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(project.started()) == sorted(NODES)
    last = "\n".join(done.stdout.splitlines()[-12:])
    assert "Greedy" in last and f"Report: {project.folder}/report/index.html" in last, "the result is seen last"
    assert "dvc push" not in done.stdout and "git add" not in done.stdout
    output = serving.output.read_text()
    assert f"Prefect UI: http://127.0.0.1:{serving.port}" in output
    assert "prefect deployment run larpo/iterate" in output
    assert "sample@1: try 1" in output
    assert Path(project.folder / ".prefect/profiles.toml").is_file()

    assert len(project.processes()) >= 5  # serve, two supervisors, server, worker
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(60) == 0
    project.wait_until_gone(10)
    assert port_is_free(serving.port)
    assert not (project.folder / ".prefect/profiles.toml").exists()
    assert serving.output.read_text().endswith("Stopped.\n")
