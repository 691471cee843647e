"""A changed number in a study's results, verdicts or pages is named; what follows from them holds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from larpo.audit import studies
from larpo.audit.results import Check
from larpo.audit.studies import check_studies
from larpo.studies import expand
from larpo.studies.findings import write_findings
from larpo.studies.page import write_page
from tests.larpo.audit.forgery import edit_json, edit_text
from tests.larpo.studies.conftest import changed, made

RESULTS, FINDINGS, PAGE = "studies/results/small-cpu.json", "docs/findings.md", "report/studies/small-cpu.html"
VALUES = {"one": [0.51, 0.54, 0.52, 0.55, 0.53], "two": [0.31, 0.32, 0.33, 0.30, 0.34]}


@pytest.fixture
def project(folder, monkeypatch) -> Path:
    """Results of five seeds with their runs, whose metrics stand in for DVC's cache."""
    study = changed(folder)
    write_page(study, made(study, VALUES), folder.parent)
    write_findings(folder.parent)
    seeds = {run.name: (run.cell, run.seed - 100) for run in expand(study, folder, "cpu", 5)}
    monkeypatch.setattr(studies, "experiments", lambda project: {name: name for name in seeds})

    def outputs(project: Path, commit: str, home: Path) -> None:
        cell, place = seeds[commit]
        (home / "data/evaluate").mkdir(parents=True)
        metrics = {"greedy": {"accuracy": VALUES[cell][place]}}
        (home / "data/evaluate/2-held_out.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(studies, "outputs", outputs)
    return folder.parent


def checks(project: Path) -> dict[str, Check]:
    return {check.name: check for check in check_studies(project)}


def test_honest_ones_hold(project):
    found = checks(project)
    assert {c.verdict for c in found.values()} == {"holds"}, found
    assert not any(c.behind for c in found.values())
    assert found["recorded runs"].checked == 10 and found["pages"].checked == 2


def value(results: dict) -> None:
    """The seed's value and the mean, as a forger would change both."""
    measure = results["cells"]["two"]["measures"]["score"]
    measure["values"][1] += 0.1
    measure["value"] += 0.02


@pytest.mark.parametrize(
    ("change", "name", "line"),
    [
        (lambda p: edit_json(p / RESULTS, value), "recorded runs", f"{RESULTS}: two, seed 101: score.value is 0.42"),
        (
            lambda p: edit_json(p / RESULTS, lambda r: r["cells"]["one"]["measures"]["score"].update(value=0.6)),
            "means",
            f"{RESULTS}: one, score: value is 0.6",
        ),
        (
            lambda p: edit_json(p / RESULTS, lambda r: r["cells"]["one"]["measures"]["score"].update(low=0.529)),
            "intervals",
            f"{RESULTS}: cells.one.measures.score.low is 0.529",
        ),
        (
            lambda p: edit_json(p / RESULTS, lambda r: r["findings"]["F4"].update(verdict="undecided")),
            "verdicts",
            f"{RESULTS}: findings: F4.verdict is 'undecided'",
        ),
        (lambda p: edit_text(p / FINDINGS, "**holds**", "**undecided**"), "pages", f"{FINDINGS}, line "),
        (lambda p: edit_text(p / PAGE, "Table 3", "Table 4"), "pages", f"{PAGE}, line "),
    ],
)
def test_a_changed_number_is_named(project, change: Callable[[Path], None], name, line):
    change(project)
    check = checks(project)[name]
    assert check.verdict == "fails" and check.failures[0].startswith(line), check


def test_runs_that_are_not_here_are_not_checked(project, monkeypatch):
    monkeypatch.setattr(studies, "experiments", lambda project: {})
    check = checks(project)["recorded runs"]
    assert check.verdict == "not checked" and check.behind[0].startswith("10 runs are not here, such as small-cpu-")
