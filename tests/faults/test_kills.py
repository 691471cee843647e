"""kill -9 at random moments, over all kinds of nodes: run again, and the bytes of an undisturbed run come out."""

import os
import random
import time
from collections import Counter

import pytest

from larpo.workspace.mend import mend
from tests.conftest import Project
from tests.faults.conftest import KINDS
from tests.faults.kit import Running, assert_nothing_runs, assert_same, forget, products, scratch_left

MODES = ("tree", "tree", "node", "dvc")


def kind(stage: str) -> str:
    return stage.partition("@")[0]


def disturbed_run(project: Project, rng: random.Random, kills: Counter, most: int, *targets: str) -> list[str]:
    """`dvc repro` to its end, killed again and again on the way: `kills` counts by kind of node and by what was hit.

    A kind that was hit seldom is hit rather than one that was hit often, so that `most` kills reach all. Before each
    start DVC's records are mended, as `make run` does; returns what had to be.
    """
    mended = []
    while True:
        mended += mend(project.folder)
        running = Running(project, "-m", "dvc", "repro", *targets)
        while kills["all"] < most:
            before = len(running.stages)
            if not running.wait_for(lambda: len(running.stages) > before):  # noqa: B023 - called before it changes
                break
            stage = running.stages[-1]
            missed = [k for k in KINDS if not kills[k]] if not targets else []
            if kind(stage) not in missed and most - kills["all"] <= 2 * len(missed):
                continue  # what is left of the kills is for the kinds that none has hit
            fewest = min(kills[k] for k in KINDS) if not targets else kills[kind(stage)]
            if rng.random() < (0.7 if kills[kind(stage)] <= fewest else 0.15):
                time.sleep(rng.choice([0.1, 0.5, 1.5, 3.0]) * rng.random())
                if running.process.poll() is None:
                    how = running.kill(rng.choice(MODES))
                    kills.update(["all", kind(running.stages[-1]), f"by {how}"])
                break
        status, output = running.finish()
        assert_nothing_runs(project.folder)
        if status == 0:
            return mended
        assert status == -9 or "exited with -9" in output or "exited with 137" in output, output


@pytest.mark.faults
@pytest.mark.timeout(2 * 3600)
def test_fifty_kills_over_all_kinds_of_nodes(undisturbed, tmp_path, warm_nodes):
    finished, expected = undisturbed
    seed = int(os.environ.get("LARPO_FAULTS_SEED", random.SystemRandom().randrange(10**6)))
    most = int(os.environ.get("LARPO_FAULTS_KILLS", "50"))
    print(f"seed {seed} (LARPO_FAULTS_SEED), {most} kills (LARPO_FAULTS_KILLS)")
    rng, kills = random.Random(seed), Counter()
    project = finished.copy(tmp_path / "project")
    project.variables = warm_nodes
    while kills["all"] < most:
        forget(project)
        mended = disturbed_run(project, rng, kills, most)
        assert_same(products(project.folder), expected)
        assert scratch_left(project.folder) == []
        print(f"{dict(kills)} {mended}", flush=True)
    assert most < 50 or [k for k in KINDS if not kills[k]] == [], f"kinds that were never hit; seed {seed}"


def test_four_kills(finished_project, tmp_path, warm_nodes):
    """The short form, over the first nodes of an iteration: every way to kill once."""
    expected = products(finished_project.folder)
    seed = int(os.environ.get("LARPO_FAULTS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed} (LARPO_FAULTS_SEED)")
    rng = random.Random(seed)
    project = finished_project.copy(tmp_path / "project")
    project.variables = warm_nodes
    forget(project)
    for number, how in enumerate(("tree", "node", "dvc", "tree"), 1):
        mend(project.folder)
        running = Running(project, "-m", "dvc", "repro", "sample@1")
        running.wait_for(lambda r=running, n=min(number, 2): len(r.stages) >= n, 60)
        time.sleep(rng.random() * 0.5)
        running.kill(how)
        running.finish()
        assert_nothing_runs(project.folder)
    mend(project.folder)
    project.dvc("repro", "sample@1")
    made = products(project.folder)
    assert "data/sample/1.parquet" in made
    assert_same(made, {path: expected[path] for path in made})
    assert scratch_left(project.folder) == []
