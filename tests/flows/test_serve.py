"""`make serve`: a real server, work pool, deployment and worker; nothing is left when it ends."""

import html
import http.server
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from flows.serve import main
from flows.server import check_password, port_is_free
from larpo.errors import UserError
from larpo.studies.expand import names
from tests.conftest import Project
from tests.flows.conftest import NODES, ROOT, Serving
from tests.larpo.audit.forgery import flip
from tests.test_report_browser import CHROMIUM, FLAGS


@pytest.fixture
def plain() -> dict[str, str]:
    """The environment of another shell: nothing of Prefect's is set."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}


def test_a_taken_port_is_one_line(serving: Serving, monkeypatch, capsys) -> None:
    monkeypatch.chdir(serving.project.folder)
    monkeypatch.setattr(sys, "argv", ["flows.serve", "--port", str(serving.port)])
    assert main() == 2
    expected = f"error: port {serving.port} on 127.0.0.1 is taken by another program; choose another with --port\n"
    assert capsys.readouterr().err == expected


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


REFUSED = [
    ("GET", "admin/version", None),
    ("POST", "deployments/filter", {}),
    ("POST", "deployments/{deployment}/create_flow_run", {"job_variables": {"command": "touch /tmp/planted"}}),
    ("POST", "work_pools/local/get_scheduled_flow_runs", {}),
]
ANOTHER_USER = """
import encodings.idna, json, os, sys, urllib.error, urllib.request, websockets.sync.client
os.setgroups([]), os.setgid(65534), os.setuid(65534)
url, asked, told = sys.argv[1], json.loads(sys.argv[2]), []
for header in ("", "Basic bGFycG86", "Basic Og==", "Bearer x"):
    for method, path, body in asked:
        headers = {"Content-Type": "application/json"} | ({"Authorization": header} if header else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + "/" + path, data, headers, method=method)
        try:
            told.append(urllib.request.urlopen(request).status)
        except urllib.error.HTTPError as error:
            told.append(error.code)
streams = [url.replace("http", "ws") + path for path in ("/events/out", "/logs/out")]
for address, words in [(stream, words) for stream in streams for words in (None, ["prefect"])]:
    try:
        with websockets.sync.client.connect(address, subprotocols=words) as socket:
            socket.send(json.dumps({"type": "auth", "token": ""}))
            told.append(socket.recv(timeout=10))
    except Exception as error:
        told.append(type(error).__name__)
print(json.dumps(told))
"""


@pytest.fixture
def asked(serving: Serving) -> list[tuple[str, str, dict | None]]:
    with temporary_settings(serving.settings), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("larpo/iterate").id
    return [(method, path.format(deployment=deployment), body) for method, path, body in REFUSED]


def runs_of(serving: Serving) -> int:
    with temporary_settings(serving.settings), get_client(sync_client=True) as client:
        return len(client.read_flow_runs())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_of_the_machine_is_refused(serving: Serving, plain: dict[str, str], asked: list) -> None:
    """By the API, with no password or a wrong one; and what holds the password can be read by the owner alone."""
    before = runs_of(serving)
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_USER, serving.url, json.dumps(asked)],
        env=plain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told[:-4] == [401] * 4 * len(asked)
    assert set(told[-4:]) <= {"InvalidStatus", "ConnectionClosedError", "ConnectionClosedOK"}
    assert runs_of(serving) == before
    home = serving.project.folder / ".prefect"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    holders = [
        p
        for p in home.rglob("*")
        if p.is_file() and serving.settings[PREFECT_API_AUTH_STRING] in p.read_text(errors="replace")
    ]
    assert {(p.name, stat.S_IMODE(p.stat().st_mode)) for p in holders} == {("auth", 0o600), ("profiles.toml", 0o600)}


PAGE = """<!doctype html><title>start</title><script>
const api = API, asked = ASKED, told = [];
async function one(label, url, options) {
  try { const answer = await fetch(url, options); told.push(label + " " + answer.type + " " + answer.status); }
  catch (error) { told.push(label + " " + error.name); }
}
(async () => {
  await one("own", "/page", {});
  for (const [method, path, body] of asked) {
    const data = body === null ? undefined : JSON.stringify(body);
    await one("json", api + "/" + path, {method, body: data, headers: {"Content-Type": "application/json"}});
    await one("simple", api + "/" + path, {method, body: data, mode: "no-cors", credentials: "include"});
    await one("guess", api + "/" + path, {method, body: data, headers: {"Authorization": "Basic bGFycG86"}});
  }
  document.title = "done"; document.body.textContent = JSON.stringify(told);
})();
</script><body></body>"""


@pytest.mark.browser
def test_a_page_in_a_browser_is_refused(serving: Serving, asked: list, tmp_path: Path) -> None:
    """Of another origin: it reads no answer, and what it may send unread is not obeyed."""
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install the package chromium")
    page = PAGE.replace("API", json.dumps(serving.url), 1).replace("ASKED", json.dumps(asked), 1)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    before = runs_of(serving)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        flags = [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
        address = f"http://127.0.0.1:{other.server_port}/page"
        dom = subprocess.run(
            [CHROMIUM, *flags, address], capture_output=True, text=True, timeout=120, check=True
        ).stdout
        other.shutdown()
    assert "<title>done</title>" in dom, dom
    told = json.loads(html.unescape(dom.partition("<body>")[2].partition("</body>")[0]))
    assert told[0] == "own basic 200"
    assert set(told[1:]) == {"json TypeError", "simple opaque 0", "guess TypeError"}
    assert runs_of(serving) == before
    for origin in (address, "null"):
        request = urllib.request.Request(f"{serving.url}/health", headers={"Origin": origin})
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["access-control-allow-origin"] is None


def test_a_run_with_another_password_is_refused_in_one_line(serving: Serving, plain: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.run", "--target", "policy"],
        cwd=serving.project.folder,
        env=plain | {"PREFECT_API_URL": serving.url, "PREFECT_PROFILES_PATH": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "refuses PREFECT_API_AUTH_STRING; set it to what" in done.stderr
    with pytest.raises(UserError, match="refuses PREFECT_API_AUTH_STRING; set it to what"):
        check_password(serving.url, "larpo:guess")


def test_every_study_has_a_deployment(serving: Serving) -> None:
    """As the server knows them."""
    with temporary_settings(serving.settings), get_client(sync_client=True) as client:
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
def test_deployment_runs_and_nothing_is_left(serving: Serving, plain: dict[str, str], tmp_path: Path) -> None:
    project = serving.project
    command = [sys.executable, "-m", "prefect", "deployment", "run", "larpo/iterate"]
    # The pool's template decides what is executed, and where.
    planted = tmp_path / "planted"
    command += ["--job-variable", f"command=touch {planted}", "--job-variable", f"working_dir={tmp_path}", "--watch"]
    # No address is given: the project's prefect.toml leads to the server.
    env = plain | {"COLUMNS": "300"}
    done = subprocess.run(command, cwd=project.folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(project.started()) == sorted(NODES[:-1]) and not planted.exists()  # the report keeps no record
    assert "dvc push" not in done.stdout and "git add" not in done.stdout
    last, output = done.stdout.splitlines()[-12:], serving.output.read_text()
    assert any("Greedy" in line for line in last), done.stdout
    assert any(line.endswith(f"Report: {project.folder}/report/index.html") for line in last), done.stdout
    assert f"Prefect UI: http://127.0.0.1:{serving.port}" in output
    assert "prefect deployment run larpo/iterate" in output
    assert "WARNING" not in output.partition("Prefect UI")[0]
    assert "sample@1: try 1" in output
    password = (project.folder / ".prefect/auth").read_text()
    assert password not in output

    assert len(project.processes()) >= 5  # serve, two supervisors, server, worker
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(60) == 0
    project.wait_until_gone(10)
    assert port_is_free(serving.port)
    assert not [
        p for p in (project.folder / ".prefect").rglob("*") if p.is_file() and password.encode() in p.read_bytes()
    ]
    assert serving.output.read_text().endswith("Stopped.\n")
