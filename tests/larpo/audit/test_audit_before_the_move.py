"""A run that was made and packed before the modules moved into rooms (by commit 02cf5a9): it is read and holds."""

from __future__ import annotations

from pathlib import Path

from larpo.audit.open import open_run
from larpo.audit.run import Again, audit

PACK = Path(__file__).with_name("before_the_move.larpo.tar")


def test_a_run_from_before_the_move_holds(tmp_path, monkeypatch):
    """Its tables by the code here; its nodes by the code of its own commit, which has other paths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with open_run(tmp_path, str(PACK)) as run:
        tree = audit(run, Again(("candidates@2", "lists@1")), False, tmp_path / "report", print)
    found = {c["name"]: c["verdict"] for c in tree["checks"]}
    assert found.pop("near-duplicates of evaluation prompts") == "counted"
    assert tree["holds"] and found == dict.fromkeys(found, "holds"), tree
    executed = [c for c in tree["checks"] if c["part"] == "again"]
    assert [c["name"] for c in executed] == ["lists@1", "candidates@2"]
    assert all(c["detail"].startswith("bit-identical") for c in executed), executed
    assert tree["nodes"] == 22 and len(tree["card"]) == 7
