"""Whatever a user's settings and whatever files are called, bytes and names are what they are."""

import subprocess
import sys
from pathlib import Path

from larpo.workspace.git import git_state
from tests.conftest import ROOT

NAMES = ['quo"te.py', "größe.py", "back\\slash.py", "tab\t.py", "plain.py"]


def commit(folder: Path) -> None:
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command], cwd=folder, check=True)


def test_changed_files_of_any_name_are_told(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text("1\n")
    commit(tmp_path)
    assert git_state(tmp_path)["changed"] == []
    for name in NAMES:
        (tmp_path / name).write_text("2\n")
    assert sorted(git_state(tmp_path)["changed"]) == sorted(NAMES)


def test_no_setting_changes_the_ends_of_lines(tmp_path):
    """.gitattributes: with core.autocrlf a checkout had other hashes than dvc.lock."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    (tmp_path / "a/params.yaml").write_bytes(b"seed: 0\nsft: {}\n")
    commit(tmp_path / "a")
    subprocess.run(["git", "-c", "core.autocrlf=true", "clone", "-q", "a", "b"], cwd=tmp_path, check=True)
    assert (tmp_path / "b/params.yaml").read_bytes() == b"seed: 0\nsft: {}\n"


def test_a_terminal_of_ascii_ends_nothing():
    command = [sys.executable, "-c", "import larpo; print('15.0 (10.7–20.6) …')"]
    done = subprocess.run(command, env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"15.0 (10.7\\u201320.6) \\u2026\n"), done.stderr
