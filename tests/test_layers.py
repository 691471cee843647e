"""The layers: flows → tasks → larpo; imports go down only, and a registry does not load what it names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

ALLOWED = {"larpo": {"larpo"}, "tasks": {"tasks", "larpo"}, "flows": {"flows", "tasks", "larpo"}}
MODULES = [path for layer in ALLOWED for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path):
    layer = path.relative_to(ROOT).parts[0]
    names = imported(path)
    assert names & set(ALLOWED) <= ALLOWED[layer]
    if layer == "larpo":
        assert not names & {"prefect", "dvc"}, "the method knows no orchestration"
    if layer == "tasks":
        assert "prefect" not in names


def test_checking_params_loads_no_model_library():
    """Bad input is refused within a moment, before torch or transformers are even imported by engines and rewards."""
    code = (
        "import sys; from larpo.load import load_params; load_params('params.yaml'); "
        "print([m for m in ('transformers', 'vllm', 'datasets', 'math_verify') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_node_declares_the_code_that_makes_it():
    """A stage depends on its own module, and on what of `larpo` that module imports apart from the frame."""
    frame = {
        "larpo.errors",
        "larpo.load",
        "larpo.registry",
        "larpo.config.params",
        "larpo.config.sections",
        "larpo.tables",
        "larpo.hashing",
        "larpo.sources.provenance",
    }
    frame |= {
        "larpo.models.remote_code",
        "larpo.config.reward",
        "tasks.frame.node",
        "tasks.frame.files",
        "tasks.frame.lock",
        "larpo.workspace.dvc_lock",
    }
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    for name, stage in stages.items():
        body = stage.get("do", stage)
        command = body["cmd"].split()[2].replace(".", "/") + ".py"
        deps = set(body["deps"])
        assert command in deps, name
        todo, seen = [command], set()
        while todo:
            path = todo.pop()
            for module in modules(ROOT / path) - frame - seen:
                seen.add(module)
                file = module.replace(".", "/")
                known = any(f"{file}{end}" in deps for end in ("", ".py")) or file.rsplit("/", 1)[0] in deps
                assert known or (name, module) in NOT_TRACKED, f"{name}: {module} is imported but is no dependency"
                if (ROOT / f"{file}.py").is_file():
                    todo.append(f"{file}.py")


def modules(path: Path) -> set[str]:
    """Modules of the project that a module imports: `from larpo import tables` is larpo.tables."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ALLOWED:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            are_modules = [name for name in inside if (ROOT / f"{name.replace('.', '/')}.py").is_file()]
            found |= set(are_modules or [node.module])
    return found


# What decides only whether a node refuses its input: how a folder of weights is opened, whether a reward needs answers,
# whether a judge has its key; and what only starts the same command in several processes.
NOT_TRACKED = {
    ("reference", "larpo.models.load"),
    ("train", "larpo.models.load"),
    ("reward", "larpo.models.load"),
    ("score", "larpo.models.load"),
    ("best_of_n", "larpo.models.load"),
    ("score", "larpo.models.packages"),
    ("best_of_n", "larpo.models.packages"),
    ("train", "tasks.frame.launch"),
    ("sft", "tasks.frame.launch"),
    ("prompts", "larpo.rewards"),
    ("generate", "larpo.benchmarks.judge"),
    ("generate", "larpo.benchmarks"),
}
