"""What a run's clone takes from the project while other commands use its Git repository."""

import os
import subprocess
from pathlib import Path

import pytest

from larpo.errors import UserError
from larpo.workspace.clone import Workspace
from larpo.workspace.dvc_lock import plain, read_lock
from larpo.workspace.git import git, stashed
from tests.conftest import larpo_command


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "t")
    git(tmp_path, "config", "user.email", "t@localhost")
    (tmp_path / "file").write_text("one\n")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_changes_are_stashed_while_the_index_is_locked(repository):
    """Two runs of a study that open at once met here: `git stash create` alone ends with 1."""
    assert stashed(repository) == ""
    (repository / "file").write_text("two\n")
    (repository / ".git/index.lock").touch()
    alone = subprocess.run(["git", "stash", "create"], cwd=repository, capture_output=True, check=False)
    assert alone.returncode == 1
    changes = stashed(repository)
    assert git(repository, "show", f"{changes}:file") == "two"
    assert (repository / "file").read_text() == "two\n"


def test_a_file_written_again_as_it_was_is_no_change(repository):
    file = repository / "file"
    os.utime(file, (1, 1))
    assert stashed(repository) == ""
    os.utime(file, (2, 2))
    (repository / "other").write_text("one\n")
    git(repository, "add", "other")
    (repository / "other").write_text("two\n")
    assert git(repository, "show", f"{stashed(repository)}:other") == "two"
    assert git(repository, "show", f"{stashed(repository)}:file") == "one"


def test_of_a_run_that_was_refused_only_what_it_made_is_kept(project, monkeypatch):
    runs, command = project.folder / ".larpo/runs", ("exp", "-S", "sample.responses=4")
    monkeypatch.setenv("LARPO_TEST_REFUSE", "policy")
    done = larpo_command(project.folder, *command)
    refusal = "prompts.parquet row 3: expected text, found nothing"
    assert (done.returncode, done.stderr) == (1, f"failed: policy: {refusal}\n")
    assert list(runs.iterdir()) == []
    monkeypatch.setenv("LARPO_TEST_REFUSE", "sample@1")
    for made in (": policy, prompts@1", ""):  # the second time it goes on there, and makes nothing
        done = larpo_command(project.folder, *command)
        (clone,) = runs.iterdir()
        assert (done.returncode, done.stderr) == (1, f"failed: sample@1: {refusal}; kept in {clone}{made}\n")
    monkeypatch.delenv("LARPO_TEST_REFUSE")
    assert larpo_command(project.folder, *command).returncode == 0 and list(runs.iterdir()) == []


def test_a_clone_that_cannot_be_made_leaves_nothing(project):
    (project.folder / "own.txt.dvc").write_text("outs: [{path: own.txt, md5: 0123456789abcdef0123456789abcdef}]\n")
    for command in (["add", "-A"], ["commit", "-qm", "data that is not in the cache"]):
        project.call("git", *command)
    with pytest.raises(RuntimeError, match="dvc checkout own"):
        Workspace(project.folder, "clone").open("seed: 1\n")
    assert list((project.folder / ".larpo/runs").iterdir()) == []


@pytest.mark.parametrize(("second", "fits"), [("a1", True), ("b2", False)])
def test_a_dependency_that_is_named_twice_has_one_content(tmp_path, second, fits):
    """reference@1 names its policy twice, as what the iteration follows and as what the run starts from."""
    entry = "    - {path: data/policy/0, hash: md5, md5: %s}\n"
    lock = tmp_path / "dvc.lock"
    lock.write_text("stages:\n  reference@1:\n    cmd: x\n    deps:\n" + entry % "a1" + entry % second)
    if fits:
        assert read_lock(lock)["reference@1"].deps.keys() == {"data/policy/0"}
    else:
        with pytest.raises(UserError, match=r"reference@1 records data/policy/0 twice, with different contents"):
            read_lock(lock)


@pytest.mark.parametrize("written", ["./data/x", "data//x", "data/x/", "data/y/../x", "{here}/data/x", "data/x"])
def test_one_path_has_one_name(tmp_path, written):
    assert plain(written.format(here=tmp_path), tmp_path) == "data/x"
    lock = tmp_path / "dvc.lock"
    path = written if "{" not in written else "data/x"  # which DVC shortens itself
    lock.write_text(f"stages:\n  embed@c:\n    cmd: x\n    deps:\n    - {{path: {path}, hash: md5, md5: a1}}\n")
    assert [(p, e.path) for p, e in read_lock(lock)["embed@c"].deps.items()] == [("data/x", "data/x")]


@pytest.mark.parametrize("outside", ["../x", "/elsewhere/x"])
def test_what_lies_outside_keeps_its_name(tmp_path, outside):
    assert plain(outside, tmp_path) == outside
