"""A copy of the finished run to tamper with, put back after each test."""

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from larpo.audit.open import AuditedRun
from tests.conftest import Project


@pytest.fixture(scope="module")
def shared(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return finished_project.copy(tmp_path_factory.mktemp("audited") / "project")


@pytest.fixture
def copy(shared: Project, finished_project: Project) -> Iterator[Project]:
    """Of the finished run, with its Git repository and DVC's cache."""
    before = _files(shared.folder)
    yield shared
    shared.__dict__.pop("variables", None)
    after = _files(shared.folder)
    for name in after.keys() - before.keys():
        (shared.folder / name).unlink()
    for name in (name for name, was in before.items() if after.get(name) != was):
        (shared.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shared.folder / name).unlink(missing_ok=True)
        shutil.copy2(finished_project.folder / name, shared.folder / name, follow_symlinks=False)


def _files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What changes with a file's content, whatever is done to its time stamp."""
    facts = {p.relative_to(folder).as_posix(): p.lstat() for p in folder.rglob("*")}
    return {n: (s.st_ino, s.st_size, s.st_ctime_ns) for n, s in facts.items() if not stat.S_ISDIR(s.st_mode)}


@pytest.fixture(scope="session")
def honest(finished_project: Project) -> AuditedRun:
    return AuditedRun(finished_project.folder)
