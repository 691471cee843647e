"""A folder in which nodes run in this process."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TINY_PARAMS


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_policy: Path, inputs_first) -> Path:
    """The working folder: under Git, the tiny project's params.yaml, policy 0."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TINY_PARAMS.format(policy=tiny_policy))
    shutil.copytree(tiny_policy, "data/policy/0")
    subprocess.run(["git", "init", "-q"], check=True)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    return tmp_path


def change(**sections: Any) -> None:
    """Replace whole sections of params.yaml."""
    raw = yaml.safe_load(Path("params.yaml").read_text()) | sections
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def record(path: str) -> dict[str, Any]:
    """A JSON file that a node wrote."""
    return json.loads(Path(path).read_text("utf-8"))
