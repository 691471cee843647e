"""Training in several processes: `train.launch` names an Accelerate configuration, and the result is one process's."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

import tasks.train
from larpo import tables
from larpo.errors import UserError
from larpo.training.list_trainer import TrainingList
from larpo.training.micro_batches import Examples, PaddedOrder
from tests.conftest import Project
from tests.tasks.conftest import change

TWO_PROCESSES = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
num_machines: 1
machine_rank: 0
num_processes: 2
main_process_port: 0
mixed_precision: "no"
"""


@pytest.fixture(scope="module")
def before_training(tmp_path_factory, finished_project, warm_nodes) -> Project:
    """The finished run with three lists in iteration 1: two processes cannot share them equally."""
    project = finished_project.copy(tmp_path_factory.mktemp("launch") / "project")
    project.variables = warm_nodes  # the node's own process; those that it launches start cold
    (project.folder / "dvc.lock").unlink()  # it holds other lists
    path = project.folder / "data/lists/1.parquet"
    lists = tables.read("lists", str(path))
    kept = lists["prompt_id"].drop_duplicates().iloc[:3]
    assert len(kept) == 3
    tables.write(lists[lists["prompt_id"].isin(kept)], "lists", path)
    (project.folder / "two.yaml").write_text(TWO_PROCESSES)
    return project


@pytest.fixture
def prepared(tmp_path, before_training) -> Project:
    project = before_training.copy(tmp_path / "project")
    project.variables = before_training.variables
    shutil.rmtree(project.folder / "scratch", ignore_errors=True)
    return project


def train(project: Project) -> tuple[dict[str, torch.Tensor], dict[str, str], dict]:
    """Weights, curves and manifest of `train@1`."""
    for out in ("data/policy/1", "data/train/1"):
        project.run("rm", "-rf", out)
    project.node("train", "1")
    curves = {p.stem: p.read_text() for p in (project.folder / "data/train/1/plots/metrics").glob("*.tsv")}
    manifest = json.loads((project.folder / "data/train/1.manifest.json").read_text())
    return load_file(project.folder / "data/policy/1/model.safetensors"), curves, manifest


@pytest.mark.slow
@pytest.mark.parametrize("by_tokens", [False, True])
def test_two_processes_equal_one(prepared, by_tokens):
    """Three lists in steps of two, two epochs: the last step of an epoch has one list, so one of the two processes
    computes a copy that must not count, also where tokens limit a micro-batch. Weights move by about 1e-3 (learning
    rate 1e-3), and agree to 1e-6."""
    prepared.set("  save_steps: 1", "  save_steps: 1\n  epochs: 2")
    start = load_file(prepared.folder / "data/policy/0/model.safetensors")
    one, curves_one, manifest_one = train(prepared)
    prepared.set("  save_steps: 1", "  save_steps: 1\n  launch: two.yaml")
    if by_tokens:
        prepared.set("  lists_per_device_batch: 1", "  tokens_per_device_batch: 64")
    two, curves_two, manifest_two = train(prepared)
    assert manifest_one["notes"]["steps"] == manifest_two["notes"]["steps"] == 4
    assert manifest_two["params"]["train"]["launch"] == "two.yaml"
    moved = max(float((one[k] - start[k]).abs().max()) for k in start)
    assert moved > 5e-4
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=0, msg=name)
    assert curves_one.keys() == curves_two.keys()
    for name in curves_one:
        a, b = (
            torch.tensor([float(line.split("\t")[1]) for line in c[name].splitlines()[1:]])
            for c in (curves_one, curves_two)
        )
        assert len(a) == 4
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    assert not any((prepared.folder / "scratch/train@1").iterdir())


@pytest.mark.slow
def test_two_processes_share_the_reference_pass(prepared):
    """Each computes every second part of the lists; the table is one process's, to the byte."""
    out = prepared.folder / "data/reference/1.parquet"
    prepared.set("lists_per_batch: 2}", "lists_per_batch: 1}")
    found = []
    for launch in ("lists_per_batch: 1}", "lists_per_batch: 1, launch: two.yaml}"):
        prepared.set("lists_per_batch: 1}", launch)
        prepared.run("rm", "-rf", "data/reference/1.parquet")
        prepared.node("reference", "1")
        found.append(out.read_bytes())
        manifest = json.loads((prepared.folder / "data/reference/1.manifest.json").read_text())
        assert manifest["rows"]["out"] == manifest["rows"]["in"] > 0 and "exactness" in manifest["notes"]
    assert found[0] == found[1] and manifest["params"]["reference"]["launch"] == "two.yaml"


@pytest.mark.faults
def test_killed_launcher_leaves_nothing_and_is_resumed(prepared):
    """kill -9 of the launcher after the first checkpoint: its two processes end with it, and a second run goes on from
    the checkpoint to the weights of an undisturbed run."""
    prepared.variables = {}  # it is a process of its own that is killed
    prepared.set("  save_steps: 1", "  save_steps: 1\n  launch: two.yaml\n  epochs: 10")
    undisturbed, _, _ = train(prepared)
    for out in ("data/policy/1", "data/train/1"):
        prepared.run("rm", "-rf", out)
    scratch = prepared.folder / "scratch/train@1"
    launcher = subprocess.Popen(
        [sys.executable, "-m", "tasks.train", "1"],
        cwd=prepared.folder,
        env=prepared.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    start, workers = time.monotonic(), []
    while not any(scratch.glob("*/checkpoints/checkpoint-*/trainer_state.json")):
        assert launcher.poll() is None and time.monotonic() - start < 120
        workers = psutil.Process(launcher.pid).children()
        time.sleep(0.01)
    assert len(workers) == 2
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert not (prepared.folder / "data/policy/1").exists()
    done = prepared.node("train", "1")
    assert done.stdout.count("resuming from checkpoint-") == 1
    again = load_file(prepared.folder / "data/policy/1/model.safetensors")
    for name in undisturbed:
        torch.testing.assert_close(again[name], undisturbed[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.faults
def test_bad_input_is_told_from_a_crash(prepared):
    """What a process refuses ends the launched command with exit code 2, as it ends a plain one."""
    prepared.set("  lists_per_step: 2", "  lists_per_step: 1\n  launch: two.yaml")
    done = prepared.node("train", "1", check=False)
    assert done.returncode == 2
    assert "error: params.yaml: train.lists_per_step: 1 is no multiple of" in done.stderr
    assert "times 2 process(es)" in done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"^params.yaml: train.launch: two.yaml: not found"),
        ("distributed_type: MULTI_GPU\nnum_proceses: 2\n", r"two.yaml: .*num_proceses"),
    ],
)
def test_a_missing_or_wrong_configuration_is_one_line(workspace, content, words):
    train = yaml.safe_load(Path("params.yaml").read_text())["train"]
    change(train=train | {"launch": "two.yaml"})
    if content:
        Path("two.yaml").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        tasks.train.main("1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lists", "multiple", "padding"), [(3, 2, 1), (4, 2, 0), (5, 8, 3), (1, 8, 7)])
def test_padded_order(lists, multiple, padding):
    """Every list once, in the order of a single process, then copies without weight; another order per epoch."""
    dataset = Examples([TrainingList(None, [float(i)], []) for i in range(lists)])
    order, again = PaddedOrder(dataset, 3, multiple), PaddedOrder(dataset, 3, multiple)
    first = list(order)
    assert len(first) == len(order) == lists + padding
    assert sorted(first[:lists]) == list(range(lists)) and first[lists:] == [-1] * padding
    assert [dataset[i].weight for i in first] == [1.0] * lists + [0.0] * padding
    again.set_epoch(1)
    second = list(again)
    assert sorted(second[:lists]) == list(range(lists))
    assert list(order) == second, "epochs count by themselves"
