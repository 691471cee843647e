"""Disks that are full or read-only: one line, old outputs stay, and with space the same bytes."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.faults.kit import assert_nothing_runs, assert_same, fill, products, set_read_only, small_disk

NODES = {
    # node: (command, bytes that are left of the disk)
    "sample": (["tasks.sample", "1"], 6_000),  # two or three parts
    "train": (["tasks.train", "1"], 300_000),  # in a checkpoint
    "policy": (["tasks.policy"], 20_000),  # in the weights
    "report": (["tasks.report"], 100_000),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, finished_project, warm_nodes) -> Project:
    project = finished_project.copy(tmp_path_factory.mktemp("disk") / "project")
    project.variables = warm_nodes
    return project


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """One line, exit status 1: the same input may be tried again."""
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.strip() and not x.startswith(("WARNING", "Warning"))]
    assert line.startswith("error: "), line
    for word in words:
        assert word in line, line


def command(project: Project, *node: str) -> subprocess.CompletedProcess:
    return project.run(sys.executable, "-m", *node, check=False)


@pytest.mark.parametrize(
    "node", ["sample", "train", *(pytest.param(n, marks=pytest.mark.faults) for n in ("policy", "report"))]
)
def test_a_full_disk_is_one_line_and_the_rest_follows_when_there_is_space(prepared, node):
    """scratch/ is a file system of its own here, so that publishing goes from one to the other too."""
    run, left = NODES[node]
    expected = products(prepared.folder)
    with small_disk(prepared.folder / "scratch", 4096) as disk:
        filler = fill(disk, left)
        refused(command(prepared, *run), "the disk is full; make space and run again", str(disk))
        assert_same(products(prepared.folder), expected)
        filler.unlink()
        done = command(prepared, *run)
        assert done.returncode == 0, done.stderr
    assert_same(products(prepared.folder), expected)
    assert_nothing_runs(prepared.folder)


def test_a_full_data_folder_keeps_the_old_output(prepared):
    expected = products(prepared.folder)
    with small_disk(prepared.folder / "data", 8192) as disk:
        filler = fill(disk, 1_000)
        refused(command(prepared, "tasks.sample", "1"), "the disk is full", str(disk))
        assert_same({k: v for k, v in products(prepared.folder).items() if k != "data/filler"}, expected)
        filler.unlink()
        assert command(prepared, "tasks.sample", "1").returncode == 0
        assert_same(products(prepared.folder), expected)
        # A new file system that cannot be written is told before anything is computed.
        set_read_only(disk, True)
        done = command(prepared, "tasks.sample", "1")
        refused(done, f"{disk}/sample: the file system is read-only; make it writable")
        assert "prompts" not in done.stdout
        set_read_only(disk, False)


@pytest.mark.faults
@pytest.mark.parametrize(("node", "limit"), [("sample", 2_000), ("train", 30_000)])
def test_a_limit_on_the_size_of_files_is_one_line(prepared, node, limit):
    """Needs no mount: setrlimit. A node of its own process, for a warm one has its server's limits."""
    expected = products(prepared.folder)
    run, _ = NODES[node]
    done = subprocess.run(
        [sys.executable, "-m", *run],
        cwd=prepared.folder,
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in prepared.environment.items() if k != "LARPO_WARM"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    refused(done, "the file is larger than this process may write; raise the limit (ulimit -f)")
    assert_same(products(prepared.folder), expected)
    assert command(prepared, *run).returncode == 0
    assert_same(products(prepared.folder), expected)


@pytest.mark.faults
def test_a_full_or_read_only_cache_stops_dvc_and_loses_no_output(tmp_path, finished_project, warm_nodes):
    """DVC says why in its own words. The node's output is in place; `dvc commit` keeps it without running it again."""
    project = finished_project.copy(tmp_path / "project")
    project.variables = warm_nodes
    expected = products(project.folder)
    shutil.rmtree(project.folder / ".dvc/cache")
    with small_disk(project.folder / ".dvc/cache", 512) as disk:
        for words, prepare in (
            ("No space left on device", lambda: fill(disk, 0)),
            ("Read-only file system", lambda: set_read_only(disk, True)),
        ):
            project.dvc("repro", "-s", "prompts@1")
            prepare()
            done = project.dvc("repro", "-s", "--force", "sample@1", check=False)
            assert done.returncode != 0 and words in done.stderr, done.stderr
            assert_same(products(project.folder), expected)
            set_read_only(disk, False)
            for file in Path(disk).glob("filler"):
                file.unlink()
            project.dvc("commit", "-f", "sample@1")
            again = project.dvc("repro", "-s", "sample@1").stdout
            assert "'sample@1' didn't change, skipping" in again
            shutil.rmtree(disk / "files")
    assert_nothing_runs(project.folder)
