"""A finished run to spoil: its params.yaml and its data."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Project


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_project: Project, inputs_first) -> Path:
    """A copy of a finished run, without Git and DVC, as the working folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished_project.folder / "params.yaml", folder)
    shutil.copy(finished_project.folder / "dvc.yaml", folder)
    for name in ("data", "report"):
        shutil.copytree(finished_project.folder / name, folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LARPO_JUDGEMENTS", raising=False)  # which importing flows/ sets
    return folder
