"""kill -9 in the middle of a long node, run it again: the bytes of an undisturbed run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Project


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, finished_project, warm_nodes) -> Project:
    """A copy of an undisturbed run; what is killed starts cold, the runs after it warm."""
    project = finished_project.copy(tmp_path_factory.mktemp("resume") / "project")
    project.variables = warm_nodes
    return project


def files(folder: Path, *outputs: str) -> dict[str, bytes]:
    """Bytes of all files under the outputs."""
    paths = [p for out in outputs for p in ([folder / out] if (folder / out).is_file() else (folder / out).rglob("*"))]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.is_file()}


def kill_when(project: Project, code: str, ready, limit: float = 60) -> None:
    """Start a node and SIGKILL it as soon as `ready()` holds."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    start = time.monotonic()
    while not ready():
        assert process.poll() is None, "the node ended before it could be killed"
        assert time.monotonic() - start < limit, "the node never got that far"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def complete(path: Path) -> bool:
    """A part appears by renaming, so it is whole; the Trainer writes its JSON in place."""
    try:
        return path.suffix != ".json" or bool(json.loads(path.read_text()))
    except ValueError:
        return False


AT_ONCE = "import tasks.frame.generator as g; g.SECONDS = 0; "  # each prompt is a part
CASES = {
    # node: (code that runs it, outputs, what scratch must hold when it is killed, words of the second run)
    "sample": (
        AT_ONCE + "import tasks.sample as t; t.main('1')",
        ["data/sample/1.parquet"],
        "*/0-t1-0000000*.part",
        "resuming",
    ),
    "score": ("import tasks.score as t; t.PART = 2; t.main('1')", ["data/score/1.parquet"], "*/part-*.part", ""),
    "train": (
        "import tasks.train as t; t.main('1')",
        ["data/policy/1", "data/train/1"],
        "*/checkpoints/checkpoint-1/trainer_state.json",
        "resuming",
    ),
    "generate": (
        AT_ONCE + "import tasks.generate as t; t.main('0', 'held_out')",
        ["data/generate/0-held_out.parquet"],
        "*/greedy-0000000*.part",
        "resuming",
    ),
}


LONG = [pytest.param(node, marks=[pytest.mark.faults] if node in ("score", "generate") else []) for node in CASES]


@pytest.mark.parametrize("node", LONG)
def test_killed_node_ends_with_the_same_bytes(prepared, node):
    code, outputs, sign, words = CASES[node]
    undisturbed = files(prepared.folder, *outputs)
    assert undisturbed
    for out in outputs:  # as DVC does before a stage starts
        prepared.run("rm", "-rf", out)
    stage = {"generate": "generate@0-held_out"}.get(node, f"{node}@1")
    scratch = prepared.folder / "scratch" / stage
    kill_when(prepared, code, lambda: any(map(complete, scratch.glob(sign))))
    assert not any((prepared.folder / out).exists() for out in outputs), "a killed node published something"
    which = stage.partition("@")[2].split("-")
    second = prepared.run(sys.executable, "-c", code) if node == "score" else prepared.node(node, *which)
    assert words in second.stdout
    again = files(prepared.folder, *outputs)
    assert again.keys() == undisturbed.keys()
    assert [k for k in again if again[k] != undisturbed[k]] == []
    assert not any(scratch.iterdir()), "scratch is cleared once the node is done"


def test_scratch_of_other_inputs_is_never_resumed(prepared):
    """Half a sampling run, then another seed: nothing of the first half is used."""
    sign = "*/0-t1-0000000*.part"
    scratch = prepared.folder / "scratch" / "sample@1"
    kill_when(prepared, CASES["sample"][0], lambda: any(scratch.glob(sign)))
    before = files(prepared.folder, "data/sample/1.parquet")
    prepared.set("seed: 0", "seed: 5")
    try:
        done = prepared.node("sample", "1")
    finally:
        prepared.set("seed: 5", "seed: 0")
    assert "resuming" not in done.stdout
    assert files(prepared.folder, "data/sample/1.parquet") != before
    prepared.node("sample", "1")
    assert files(prepared.folder, "data/sample/1.parquet") == before
