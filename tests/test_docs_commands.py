"""`make test-docs`: every command of README.md and docs/ runs as it stands there.

In one copy of this project, on the tiny policy, from its default run on: docs/first-run.md and README.md block by block
in their order, then the commands of the other pages. A block that opens with `# NAME.ext` is that file. What cannot run
here is in INSTEAD, with what runs in its place, or why nothing does.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import free_port
from tests.conftest import ROOT, TINY_PARAMS, Project, make_tiny_policy
from tests.test_docs import PAGES, blocks

pytestmark = [pytest.mark.docs, pytest.mark.timeout(1500)]
COMMAND = re.compile(r"(make|dvc|larpo|prefect|python|git|source|seq) ")
FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\n")
NOT_HERE, SCORED = "not run:", "tests/larpo/benchmarks score such files"
PLANS = re.compile(r"larpo plan|.* --dry-run")
"""End with 1 where something does not fit, which on the tiny policy says nothing."""
AUDITS = re.compile(r".*larpo audit")
"""End with 3 where a number rests on what was not checked, as of a stranger's run."""
INSTEAD = {
    "make serve": f"{NOT_HERE} the fixture `served` is it",
    "make test": f"{NOT_HERE} these are tests themselves",
    "make test-faults": f"{NOT_HERE} tests of their own",
    "make test-forgeries": f"{NOT_HERE} tests of their own",
    # A study computes for minutes: tests/flows/test_study.py runs one on the tiny policy.
    "larpo study table3 --scale cpu": "larpo study table3 --scale cpu --dry-run",
    "larpo study table4 --scale cpu": "larpo study table4 --scale cpu --dry-run",
    "larpo study all --scale cpu": "larpo study all --scale cpu --dry-run",
    "larpo study table4 --until-decided": f"{NOT_HERE} as the line above",
    "larpo study table4 --scale cpu --jobs 1": f"{NOT_HERE} as the line above",
    "prefect deployment run larpo-study/table4 --watch": f"{NOT_HERE} as a study",
    "prefect deployment run larpo-study/table4": f"{NOT_HERE} as a study",
    # Names and files that the reader has.
    "larpo audit ../theirs": "larpo unpack run.larpo.tar ../theirs && larpo audit ../theirs",
    "larpo audit table3-listmle-s0": "larpo audit HEAD",
    "larpo audit --diff RUN_A RUN_B": "larpo audit --diff . run.larpo.tar",
    "dvc exp apply NAME": 'dvc exp apply "$(dvc exp list --name-only | head -1)"; git checkout -- .; dvc checkout',
    "larpo score gsm8k outputs.jsonl": f"{NOT_HERE} {SCORED}",
    "larpo score mixeval responses/ --data path/to/mixeval": f"{NOT_HERE} {SCORED}",
    "larpo score alpaca_eval annotations.json --df-gamed df_gamed.csv": f"{NOT_HERE} {SCORED}",
}


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, warm_nodes: dict[str, str]) -> Project:
    """A clone of this project as its reader has it, with the tiny policy in the place of SmolLM2."""
    project = object.__new__(Project)
    project.folder = tmp_path_factory.mktemp("hour") / "larpo"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in files.strip("\0").split("\0"):
        if (ROOT / name).is_file():
            (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project.folder / name)
    shutil.copytree(tiny_policy, project.folder / "base-model")
    make_tiny_policy(project.folder / "my-model", seed=1)
    (project.folder / ".venv").symlink_to(sys.prefix)
    (project.folder / "params.yaml").write_text(TINY_PARAMS.format(policy="base-model"))
    project.variables = warm_nodes
    project.run("git", "init", "-q", "-b", "main")
    (project.folder / ".git/info/exclude").write_text(".venv\n*-model\n")
    for key, value in (("user.email", "tests@example.org"), ("user.name", "tests")):
        project.run("git", "config", key, value)
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "start")
    return project


def shell(project: Project, script: str, **variables: str) -> subprocess.CompletedProcess:
    """Bash, which stops at the first command that fails."""
    environment = {k: v for k, v in project.environment.items() if not k.startswith("PREFECT_")} | variables
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    printed = f"{script}\nexited {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    fine = {0} | ({1} if PLANS.match(script) else set()) | ({3} if AUDITS.match(script) else set())
    assert done.returncode in fine, printed
    assert "Traceback" not in done.stdout + done.stderr, script
    return done


def instead(line: str) -> str:
    """What runs in the place of a line; nothing where it says so. Make takes the environment as it is: that of these
    tests, which an installation from the copy would leave without its own."""
    bare = re.sub(r"\s+#.*", "", line).strip()
    other = INSTEAD.get(bare, bare)
    return "" if other.startswith(NOT_HERE) else re.sub(r"^make ", "make -o .venv/.ready ", other)


def commands_of(block: str) -> list[str]:
    """What runs of a block, line by line; no line where the block is no commands."""
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line]
    return [run for line in lines if (run := instead(line))] if all(map(COMMAND.match, lines)) else []


def follow(project: Project, page: Path, but: str = "\0") -> str:
    """Write the files and run the commands of a page, in their order, `but` those of one program; what they printed."""
    printed = ""
    for block in blocks(page):
        if name := FILE.match(block):
            (project.folder / name[1]).write_text(block)
            continue
        for line in commands_of(block):
            if not line.startswith(but):
                printed += shell(project, line).stdout
    return printed


def test_the_first_run_line_by_line(hour: Project) -> None:
    before = (hour.folder / "params.yaml").read_bytes()
    printed = follow(hour, ROOT / "docs/first-run.md")
    assert "report/index.html" in printed and "held_out: % of items" in printed
    assert (hour.folder / "params.yaml").read_bytes() == before
    assert hour.run("git", "status", "--porcelain", "params.yaml", "dvc.lock").stdout == ""
    assert len(hour.dvc("exp", "list", "--name-only").stdout.split()) == 4


def test_the_readme_line_by_line(hour: Project) -> None:
    follow(hour, ROOT / "README.md", but="prefect")
    assert (hour.folder / "run.larpo.tar").is_file()


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ("README.md", "first-run.md", "prefect.md")])
def test_the_commands_of_a_page(hour: Project, page: Path) -> None:
    follow(hour, page, but="prefect")


def test_a_pack_from_another_folder(hour: Project, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(hour.folder / "run.larpo.tar", tmp_path)
    elsewhere = object.__new__(Project)
    elsewhere.folder, elsewhere.variables = tmp_path / "elsewhere", hour.variables
    shell(elsewhere, "larpo audit ../run.larpo.tar && larpo unpack ../run.larpo.tar ../theirs && larpo audit ../theirs")


@pytest.fixture(scope="module")
def served(hour: Project) -> Iterator[Project]:
    """`make serve`, on a free port."""
    output = hour.folder.parent / "served"
    environment = {k: v for k, v in hour.environment.items() if not k.startswith("PREFECT_")}
    with output.open("w") as out:
        command = [sys.executable, "-m", "flows.serve", "--port", str(free_port())]
        process = subprocess.Popen(command, cwd=hour.folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 240
    while "Ctrl-C ends" not in output.read_text():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    yield hour
    process.terminate()
    process.wait(60)


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / f"docs/{n}.md" for n in ("prefect", "audit"))])
def test_what_is_asked_of_the_service(served: Project, page: Path) -> None:
    for block in blocks(page):
        for line in commands_of(block) if page.name == "prefect.md" or "prefect" in block else []:
            if line.startswith("prefect") or page.name == "prefect.md":
                printed = shell(served, line, COLUMNS="200").stdout
                if "larpo/iterate" in line:
                    last = "\n".join(printed.splitlines()[-12:])
                    assert "held_out: % of items" in last and "index.html" in last, printed
                    assert "git add" not in printed


def test_every_replacement_is_of_a_command_that_stands_somewhere() -> None:
    lines = {
        re.sub(r"\s+#.*", "", line).strip()
        for page in PAGES
        for block in blocks(page)
        for line in block.replace("\\\n", " ").splitlines()
    }
    assert set(INSTEAD) <= lines
    assert all(shlex.split(line) for line in INSTEAD)
