"""A run that is under way or not finished is no forgery, and that is said."""

import pytest
import yaml

from larpo.audit.bytes.check import nodes_run
from larpo.audit.find import open_run
from larpo.audit.open import AuditedRun
from larpo.audit.science.check import check_numbers
from larpo.errors import UserError
from larpo.workspace.processes import makers
from tests.conftest import Project
from tests.faults.kit import Running


def drop(project: Project, *nodes: str) -> AuditedRun:
    path = project.folder / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    for node in nodes:
        del lock["stages"][node]
    path.write_text(yaml.safe_dump(lock))
    return AuditedRun(project.folder)


def test_a_run_that_is_not_finished_is_not_accused(finished_project, tmp_path):
    project = finished_project.copy(tmp_path / "project")
    (project.folder / "data/evaluate/2-held_out.parquet").unlink()
    run = drop(project, "report", "evaluate@2-held_out")
    for check in (nodes_run(run), check_numbers(run, "metrics")):
        assert check.verdict == "not checked" and "2 of" in check.detail and not check.failures
    # What was reported needs all that it comes from.
    (tmp_path / "other").mkdir()
    check = nodes_run(drop(finished_project.copy(tmp_path / "other/project"), "lists@1"))
    assert check.verdict == "fails" and check.failures[0].startswith("lists@1: declared in dvc.yaml, not in dvc.lock")


def test_a_run_that_is_under_way_is_told(finished_project, tmp_path):
    project = finished_project.copy(tmp_path / "project")
    (project.folder / "tasks/lists.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(60)\n")
    busy = Running(project, "-m", "dvc", "repro", "-s", "lists@1")
    assert busy.wait_for(lambda: "started" in busy.lines)
    with (
        pytest.raises(
            UserError, match=rf"under way .process {busy.process.pid} makes data/lists/1\.\S+; audit it when"
        ),
        open_run(project.folder, None),
    ):
        pass
    busy.kill("tree")
    busy.finish()
    assert makers(project.folder), "DVC took nothing back"
    with open_run(project.folder, None) as run:  # what a killed command left says nothing
        assert run.own
