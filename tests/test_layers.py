"""The layers: flows → tasks → larpo, and the rooms of larpo in their order. An import inside a function counts too."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

from larpo.graph import read_stages
from tests.conftest import ROOT

# Each row may import from the rows before it. Within a row rooms may, as long as no circle comes of it.
ORDER = (
    ("errors", "hashing", "statistics", "tables", "registry", "graph"),
    ("config",),
    ("sources",),
    ("models",),
    ("objectives", "lists", "engines", "rewards", "training", "retrieval"),
    ("benchmarks",),
    ("load",),
    ("report", "studies"),
    ("plan",),
    ("workspace",),
    ("audit",),
    ("tasks",),
    ("flows",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
ONLY_IN = {"prefect": ("flows",), "dvc": ("larpo.workspace",)}


@cache
def imported(path: Path) -> frozenset[str]:
    """What a file imports anywhere in its code; `from larpo import tables` is larpo.tables."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for name in inside if name in MODULES} or {node.module}
    return frozenset(found)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for top in ("larpo", "tasks", "flows") for path in sorted((ROOT / top).rglob("*.py"))}


def room(module: str) -> str:
    """`larpo.audit.pack.write` lies in the room audit, `tasks.frame.node` in tasks, `larpo.load` is one by itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "larpo" and len(parts) > 1 else parts[0]


def edges() -> list[tuple[str, str]]:
    return [(module, other) for module, path in MODULES.items() for other in sorted(imported(path) & MODULES.keys())]


def circles(pairs: list[tuple[str, str]]) -> list[list[str]]:
    graph = nx.DiGraph([pair for pair in pairs if pair[0] != pair[1]])
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_every_room_has_its_place():
    assert {room(module) for module in MODULES} - {"larpo"} == set(LEVEL)
    assert len(list((ROOT / "larpo").glob("*.py"))) <= 8


def test_imports_go_down_only():
    up = {(a, b) for a, b in edges() if LEVEL.get(room(a), 0) < LEVEL.get(room(b), 0)}
    assert up == set()


def test_no_circle():
    assert circles(edges()) == []
    assert circles([(room(a), room(b)) for a, b in edges()]) == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_prefect_and_dvc_are_known_in_one_place(package):
    users = {module for module, path in MODULES.items() if any(n.split(".")[0] == package for n in imported(path))}
    assert users and {module for module in users if not module.startswith(ONLY_IN[package])} == set()


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
    for name, stage in read_stages(ROOT / "dvc.yaml").items():
        body = stage.get("do", stage)
        command = body["cmd"].split()[2].replace(".", "/") + ".py"
        deps = set(body["deps"])
        assert command in deps, name
        todo, seen = [command], set()
        while todo:
            path = todo.pop()
            for module in (imported(ROOT / path) & MODULES.keys()) - FRAME - seen - {"larpo"}:
                seen.add(module)
                file = module.replace(".", "/")
                known = any(f"{file}{end}" in deps for end in ("", ".py")) or file.rsplit("/", 1)[0] in deps
                assert known or (name, module) in NOT_TRACKED, f"{name}: {module} is imported but is no dependency"
                if (ROOT / f"{file}.py").is_file():
                    todo.append(f"{file}.py")


# Around a node: it decides how a file is checked, published and recorded, not what is in it.
FRAME = {
    "larpo.config.judges",
    "larpo.config.params",
    "larpo.config.policy",
    "larpo.config.reward",
    "larpo.config.sections",
    "larpo.config.training",
    "larpo.config.yaml12",
    "larpo.errors",
    "larpo.graph",
    "larpo.hashing",
    "larpo.load",
    "larpo.models.remote_code",
    "larpo.models.resolve",
    "larpo.registry",
    "larpo.sources.hub",
    "larpo.sources.provenance",
    "larpo.tables",
    "larpo.workspace",
    "larpo.workspace.dvc_lock",
    "larpo.workspace.files",
    "larpo.workspace.git",
    "larpo.workspace.lock",
    "larpo.workspace.machine",
    "larpo.workspace.processes",
    "larpo.workspace.progress",
    "tasks.frame.files",
    "tasks.frame.node",
    "tasks.frame.parts",
}
# What decides only whether a node refuses its input: how a folder of weights is opened, whether a reward needs answers,
# whether a judge has its key; and what only starts the same command in several processes.
NOT_TRACKED = {
    ("reference", "larpo.models.load"),
    ("train", "larpo.models.load"),
    ("reward", "larpo.models.load"),
    ("score", "larpo.models.load"),
    ("best_of_n", "larpo.models.load"),
    ("reference", "tasks.frame.launch"),
    ("train", "tasks.frame.launch"),
    ("sft", "tasks.frame.launch"),
    ("reference", "tasks.frame.launch"),
    ("prompts", "larpo.rewards"),
    ("prompts", "larpo.rewards.checkpoint"),
    ("prompts", "larpo.models.chat"),
    ("prompts", "larpo.models.load"),
    ("generate", "larpo.benchmarks.judge"),
    ("generate", "larpo.benchmarks"),
}
