"""DVC's records after a kill are put right; what somebody has to decide is left as it is."""

import subprocess
from pathlib import Path

import pytest

from larpo.errors import UserError
from larpo.workspace import mend

LOCK = "schema: '2.0'\nstages:\n  a:\n    cmd: echo {}\n    outs:\n    - path: a\n      md5: {}\n      size: 2\n"


def git(folder: Path, *arguments: str, status: int = 0) -> None:
    done = subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=folder)
    assert done.returncode == status


@pytest.fixture
def lock(tmp_path) -> Path:
    """dvc.lock of a committed run; beside it a branch on which another run was committed."""
    path = tmp_path / "dvc.lock"
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    git(tmp_path, "init", "-q", "-b", "main")
    for name, checkout in (("start", []), ("theirs", ["-b", "theirs"]), ("ours", ["main"])):
        if checkout:
            git(tmp_path, "checkout", "-q", *checkout)
        path.write_text(LOCK.format(name, "0" * 32))
        git(tmp_path, "add", "dvc.lock")
        git(tmp_path, "commit", "-qm", name)
    return path


@pytest.mark.parametrize("style", ["merge", "diff3"])
def test_a_merge_conflict_is_left_as_it_is(lock, style):
    git(lock.parent, "-c", f"merge.conflictStyle={style}", "merge", "-q", "theirs", status=1)
    conflict = lock.read_bytes()
    assert b"<<<<<<< " in conflict
    with pytest.raises(UserError, match="a merge conflict, left as it is; resolve it"):
        mend.mend(lock.parent)
    # The markers tell it too where Git no longer does, and a kill on top of it changes nothing.
    git(lock.parent, "add", "dvc.lock")
    for text in (conflict, conflict[: conflict.index(b"=======") + 8]):
        lock.write_bytes(text)
        with pytest.raises(UserError, match="merge conflict"):
            mend.mend(lock.parent)
        assert lock.read_bytes() == text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("schema: '2.0'", "schema: '3.0'", "schema '3.0'"),
        ("stages:\n", "stages: {\n", "line 4"),
        ("    cmd: echo", "   cmd:\techo: ]", "line"),
        ("stages:", "steps:", "keys schema, steps"),
    ],
    ids=["another DVC's", "an edit", "another edit", "another file"],
)
def test_what_no_kill_can_leave_is_left_as_it_is(lock, old, new, told):
    lock.write_text(lock.read_text().replace(old, new))
    text = lock.read_bytes()
    with pytest.raises(UserError, match="not cut short by a kill, so it is left as it is") as caught:
        mend.mend(lock.parent)
    assert told in str(caught.value) and lock.read_bytes() == text


def test_cut_anywhere_the_commit_takes_its_place_and_what_was_there_is_kept(lock):
    whole = lock.read_bytes()
    mended = 0
    for cut in range(len(whole)):
        lock.write_bytes(whole[:cut])
        if lines := mend.mend(lock.parent):
            mended += 1
            assert len(lines) == 1 and lock.read_bytes() == whole
            assert (lock.parent / mend.KEPT).read_bytes() == whole[:cut]
    assert mended > len(whole) / 2, "elsewhere what is left is a lock by itself"


def test_the_command_tells_it_in_one_line(lock, monkeypatch, capsys):
    monkeypatch.chdir(lock.parent)
    git(lock.parent, "merge", "-q", "theirs", status=1)
    assert mend.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
