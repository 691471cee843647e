"""Fixtures: a real but tiny policy, and a project folder that runs the real graph on it in seconds."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from filelock import FileLock

from larpo.config.params import Params, parse_params

# Before anything imports them: no telemetry, no hub, one thread per process (tiny models gain nothing from two).
os.environ |= {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
# DVC keeps what it knows of every project in one folder; that of the tests goes with them.
os.environ["DVC_SITE_CACHE_DIR"] = tempfile.mkdtemp(prefix="larpo-tests-dvc-")
atexit.register(shutil.rmtree, os.environ["DVC_SITE_CACHE_DIR"], ignore_errors=True)
# As on a user's machine: nodes store bytecode, which DVC must not take for a change.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = Path(__file__).resolve().parent.parent


LONGEST = """test_graph flows/test_study faults/test_kills larpo/rewards/test_hostile flows/test_run
security/test_remote_code_run larpo/audit/test_rerun test_docs_examples tasks/test_launch flows/test_serve
larpo/audit/test_audit larpo/audit/test_forged security/test_keys test_resume test_new_node larpo/audit/test_diff
larpo/plan/test_plan_study tasks/test_reward larpo/audit/test_pack"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadfile`: the longest files first, so that no process waits for the other at the end. The
    first one makes the finished run that many others copy; the second needs none."""
    order = {f"{name}.py": i for i, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: order.get(item.path.relative_to(ROOT / "tests").as_posix(), len(order)))


CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tiny_policy(folder: Path, seed: int = 0, hidden_size: int = 32, heads: int = 4) -> Path:
    """A two-layer Llama over characters, randomly initialised: its answers are noise, its code paths real.

    The vocabulary is small, so that a random response ends by itself about every other time.
    """
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import Fuse
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<unk>", "<eos>", "<system>", "<user>", "<assistant>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *"0123456789+-= "])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = Fuse()
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint; do not write into it."""
    return make_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


TINY_PARAMS = """
seed: 0
policy: {{model: "{policy}"}}
sft: {{}}
iterations:
  "1": {{previous: "0", temperatures: [1.0]}}
  "2": {{previous: "1", temperatures: [0.8, 1.2]}}
prompts:
  source: reasoning_gym
  tasks: [{{name: chain_sum, config: {{min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 2}}}}]
  per_iteration: 12
engine: {{name: transformers, batch_size: 2}}
sample: {{responses: 6, max_new_tokens: 10}}
score: {{reward: final_number, truncation_penalty: 1.0}}
lists: {{recipe: top_bottom, top: 2, bottom: 2, truncated: keep}}
reference: {{model: previous, lists_per_batch: 2}}
train:
  objective: lambdarank
  objective_options: {{beta: 0.1}}
  learning_rate: 1.0e-3
  lists_per_step: 2
  lists_per_device_batch: 1
  save_steps: 1
evaluate: {{policies: ["0", "2"]}}
benchmarks:
  held_out: {{items: 8, generate: {{samples: 4, temperatures: [1.0], max_new_tokens: 10}}}}
reward: {{start: larpo/rewards/rules.py}}
best_of_n: {{}}
judges: {{}}
retrieval: {{}}
report: {{examples: 2}}
"""


def tiny_params(**sections: Any) -> Params:
    """The parameters of the tiny project, with whole sections replaced; the names of rooms are not checked."""
    return parse_params(yaml.safe_load(TINY_PARAMS.format(policy="here")) | sections)


@cache
def started() -> Path:
    """A folder under Git and DVC with nothing in it, made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="larpo-tests-project-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.email", "tests@example.org"],
        ["git", "config", "user.name", "tests"],
        [*dvc, "init", "-q"],
        [*dvc, "config", "core.analytics", "false"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


class Project:
    """A copy of this project in a folder of its own, under Git and DVC, on the tiny policy."""

    first_run = ""  # what its first `dvc repro` printed
    variables: ClassVar[dict[str, str]] = {}  # further ones of its environment; warm nodes set some

    def __init__(self, folder: Path, policy: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("larpo", "tasks", "flows"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".gitignore", "prefect.toml", "pyproject.toml"):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, folder / name)
        (folder / "params.yaml").write_text(TINY_PARAMS.format(policy=policy))
        shutil.copytree(started(), folder, dirs_exist_ok=True)
        shutil.copy(ROOT / ".dvcignore", folder / ".dvcignore")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", "start")

    def copy(self, folder: Path) -> Project:
        other = object.__new__(Project)
        other.folder, other.first_run = folder, self.first_run
        shutil.copytree(self.folder, folder, symlinks=True)
        return other

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"} | self.variables

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=280
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def dvc(self, *args: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "dvc", *args, check=check)

    def node(self, module: str, *args: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", f"tasks.{module}", *args, check=check)

    def set(self, old: str, new: str) -> None:
        """Edit params.yaml."""
        path = self.folder / "params.yaml"
        text = path.read_text()
        assert text.count(old) == 1, (old, text.count(old))
        path.write_text(text.replace(old, new))


def larpo_command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """`larpo ARGUMENTS` in `folder`, in this process: importing the libraries takes longer than what is asked."""
    import contextlib

    from typer.testing import CliRunner

    from flows.cli import app

    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, list(arguments), env=variables)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(["larpo", *arguments], done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def project(tmp_path: Path, tiny_policy: Path) -> Project:
    return Project(tmp_path / "project", tiny_policy)


@pytest.fixture
def inputs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a node that a test runs in this process: `inputs`, as DVC would run it."""
    import tasks.inputs
    from tasks.frame.node import RECORDS, Node

    enter = Node.__enter__

    def entered(node: Node) -> Node:
        if any(path.is_relative_to(RECORDS) for path in node.inputs):
            tasks.inputs.main()
        return enter(node)

    monkeypatch.setattr(Node, "__enter__", entered)


@pytest.fixture(scope="session")
def warm_nodes() -> Iterator[dict[str, str]]:
    """Variables with which nodes of any project start warm; that they make the same bytes so is test_warm.py's."""
    from tasks.frame import warm

    with warm.server({"OMP_NUM_THREADS": "1"}) as variables:
        yield variables


@pytest.fixture(scope="session")
def finished_project(request: pytest.FixtureRequest, tmp_path_factory, tiny_policy: Path, worker_id: str) -> Project:
    """A project after `dvc repro`, committed; made once, whatever the number of test processes. Never changed:
    `copy()` gives one to work on."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(f"{folder}.lock"):
        if not (folder / "first_run.txt").exists():
            project = Project(folder / "project", tiny_policy)
            project.variables = request.getfixturevalue("warm_nodes")
            printed = project.dvc("repro").stdout
            project.run("git", "add", "-A")
            project.run("git", "commit", "-q", "-m", "run")
            (folder / "first_run.txt").write_text(printed)
    project = object.__new__(Project)
    project.folder, project.first_run = folder / "project", (folder / "first_run.txt").read_text()
    return project
