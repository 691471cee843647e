"""What a run's clone takes from the project while other commands use its Git repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from larpo.workspace.git import git, stashed


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
