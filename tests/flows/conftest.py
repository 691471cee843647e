"""A small DVC project in the shape of the real one, and one Prefect server and worker for all tests."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from flows.server import free_port

ROOT = Path(__file__).parents[2]
LOG = "LARPO_TEST_LOG"

# Every stage: notes its start, fails or refuses where asked to, writes its inputs' text, notes its end.
STAGE = """
import os, sys, time
from pathlib import Path
from typing import Any

name, log = os.environ["DVC_STAGE"], Path(os.environ["LARPO_TEST_LOG"])
outs, deps = (part.split(",") if part else [] for part in sys.argv[1:3])

def note(event):
    with log.open("a") as file:
        file.write(f"{event} {name} {time.monotonic()}\\n")

note("start")
tries = log.read_text().count(f"start {name} ")
print(f"{name}: try {tries}")
if os.environ.get("LARPO_TEST_FAIL") == name and tries == 1:
    sys.exit("the disk is full")
if os.environ.get("LARPO_TEST_REFUSE") == name:
    print("error: prompts.parquet row 3: expected text, found nothing", file=sys.stderr)
    sys.exit(2)
if os.environ.get("LARPO_TEST_SLEEP") == name:
    time.sleep(100)
for out in outs:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    settings = Path("params.yaml").read_text() if name.startswith("train") else ""
    Path(out).write_text(name + settings + "".join(Path(dep).read_text() for dep in deps))
note("end")
"""

GRAPH = """
stages:
  policy:
    cmd: python stage.py data/policy/0.txt ""
    deps: [stage.py]
    params: [policy]
    outs: [data/policy/0.txt]
  prompts:
    foreach: ${iterations}
    do:
      cmd: python stage.py data/prompts/${key}.txt ""
      deps: [stage.py]
      params: [prompts]
      outs: ["data/prompts/${key}.txt"]
  sample:
    foreach: ${iterations}
    do:
      cmd: python stage.py data/sample/${key}.txt data/prompts/${key}.txt,data/policy/${item.previous}.txt
      meta: {heavy: true, retries: 2}
      deps: ["data/prompts/${key}.txt", "data/policy/${item.previous}.txt"]
      params: [sample]
      outs: ["data/sample/${key}.txt"]
  train:
    foreach: ${iterations}
    do:
      cmd: python stage.py data/policy/${key}.txt data/sample/${key}.txt
      meta: {heavy: true, retries: 1}
      deps: ["data/sample/${key}.txt"]
      params: [train]
      outs: ["data/policy/${key}.txt"]
  evaluate:
    matrix:
      policy: ${evaluate.policies}
      benchmark: ${benchmarks}
    cmd: python stage.py data/evaluate/${item.policy}-${item.benchmark}.txt data/policy/${item.policy}.txt
    deps: ["data/policy/${item.policy}.txt"]
    outs: ["data/evaluate/${item.policy}-${item.benchmark}.txt"]
  report:
    cmd: python report.py
    deps: [report.py, data/evaluate]
    outs: [report/index.html]
    metrics: [report/scores.json]
"""

REPORT = """
import json, os
from pathlib import Path
from typing import Any

Path("report").mkdir(exist_ok=True)
rows = sorted(path.stem.split("-") for path in Path("data/evaluate").glob("*.txt"))
greedy = {"greedy_accuracy": 0.25, "greedy_low": 0.2, "greedy_high": 0.3}
score = {"k": 8, **greedy, "pass_1": 0.5, "mean_length": 7.0}
Path("report/scores.json").write_text(json.dumps({"held_out": {policy: score for policy, _ in rows}}))
Path("report/index.html").write_text("<p>report</p>")
"""

NODES = ["policy", "prompts@1", "sample@1", "train@1", "evaluate@0-held_out", "evaluate@1-held_out", "report"]


@dataclass
class Project:
    """The small project and the record of which of its stages ran."""

    folder: Path
    log: Path

    def started(self) -> list[str]:
        """Stages in the order they started, one entry per try."""
        return [line.split()[1] for line in self._lines() if line.startswith("start")]

    def spans(self) -> dict[str, tuple[float, float]]:
        """Start and end of each stage's last try, in seconds."""
        found: dict[str, dict[str, float]] = {}
        for event, name, clock in (line.split() for line in self._lines()):
            found.setdefault(name, {})[event] = float(clock)
        return {name: (times["start"], times["end"]) for name, times in found.items()}

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def forget(self) -> None:
        self.log.unlink(missing_ok=True)

    def call(self, *command: str) -> str:
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def dvc(self, *arguments: str) -> str:
        return self.call(sys.executable, "-m", "dvc", *arguments)

    def processes(self) -> list[psutil.Process]:
        """Everything that was started with this project's log in its environment, this process aside."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(LOG) == str(self.log)
            except psutil.Error:
                continue
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def wait_until_gone(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.1)


def make_project(folder: Path, log: Path) -> Project:
    folder.mkdir(parents=True)
    project = Project(folder, log)
    for package in ("flows", "tasks", "larpo"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "studies", folder / "studies")
    shutil.copy(ROOT / "prefect.toml", folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params["iterations"] = {"1": {"previous": "0", "temperatures": [0.8]}}
    params["evaluate"]["policies"] = ["0", "1"]
    params["benchmarks"] = {"held_out": params["benchmarks"]["held_out"]}
    (folder / "params.yaml").write_text("# a comment\n" + yaml.safe_dump(params, sort_keys=False), "utf-8")
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "stage.py").write_text(STAGE)
    (folder / "report.py").write_text(REPORT)
    (folder / ".gitignore").write_text("__pycache__/\n/.prefect/\n")
    project.call("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("config", "core.autostage", "true")
    project.call("git", "config", "user.email", "a@example.org")
    project.call("git", "config", "user.name", "A")
    project.call("git", "add", "-A")
    project.call("git", "commit", "-qm", "start")
    return project


@dataclass
class Serving:
    project: Project
    process: subprocess.Popen
    port: int
    output: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def settings(self) -> dict[Any, str]:
        """Of a client of this user's."""
        password = (self.project.folder / ".prefect/auth").read_text()
        return {PREFECT_API_URL: self.url, PREFECT_API_AUTH_STRING: password}

    @property
    def variables(self) -> dict[str, str]:
        return {setting.name: value for setting, value in self.settings.items()}


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`python -m flows.serve` on a project of its own; test_serve.py ends it."""
    base = tmp_path_factory.mktemp("serve")
    project, port, output = make_project(base / "project", base / "log"), free_port(), base / "output"
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    with output.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", "--port", str(port)],
            cwd=project.folder,
            # A setting that would open the server to the network.
            env=plain | {LOG: str(project.log), "PREFECT_SERVER_API_HOST": "0.0.0.0"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 240
    while "Ctrl-C ends" not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    yield Serving(project, process, port, output)
    APILogHandler().flush()
    EventsWorker.drain_all(timeout=10)
    if process.poll() is None:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("template")
    return make_project(base / "project", base / "log").folder


@pytest.fixture(scope="session")
def finished_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("finished")
    done = Project(base / "project", base / "log")
    shutil.copytree(template, done.folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "dvc", "repro", "-q"]
    subprocess.run(command, cwd=done.folder, env=os.environ | {LOG: str(done.log), "PATH": path}, check=True)
    done.call("git", "add", "-A")
    done.call("git", "commit", "-qm", "first run")
    return done.folder


@pytest.fixture
def finished(finished_template: Path, project: Project) -> Project:
    """The same, with every stage up to date and committed."""
    shutil.rmtree(project.folder)
    shutil.copytree(finished_template, project.folder)
    os.chdir(project.folder)
    return project


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project as the working folder."""
    made = Project(tmp_path / "project", tmp_path / "log")
    shutil.copytree(template, made.folder)
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv(LOG, str(made.log))
    monkeypatch.setenv("LARPO_RETRY_DELAY_SECONDS", "0")
    return made
