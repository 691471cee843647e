"""A run that is older than a parameter, or than what a parameter is by default: nobody is accused, and it is told."""

import contextlib
from pathlib import Path

import pytest
import yaml

from larpo.audit.bytes.check import check_bytes
from larpo.audit.lineage.check import check_lineage
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check
from larpo.audit.science.check import check_science
from larpo.hashing import tree_hash
from larpo.report.write import PAGE, write_report
from tests.conftest import Project
from tests.larpo.audit.forgery import agree, edit_json, edit_text

SILENT = {"lists": "top", "score": "truncation_penalty"}
"""Section → a key that the finished run gives, and that an older larpo is to have had by default, unlike today's."""
NAME = "manifests' parameters"


def without(sections: dict) -> None:
    for section, key in SILENT.items():
        if section in sections:
            del sections[section][key]


def manifests(folder: Path, change) -> None:
    for path in [*folder.glob("data/**/*.manifest.json"), folder / "report/report.manifest.json"]:
        edit_json(path, change)


def older(folder: Path, settings) -> None:
    """The run as a larpo would have left it that had `settings(params)` of the parameters of today."""
    params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    without(params)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), "utf-8")
    lock = yaml.safe_load((folder / "dvc.lock").read_text("utf-8"))
    for stage in lock["stages"].values():
        without(stage.get("params", {}).get("params.yaml", {}))
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), "utf-8")
    manifests(folder, lambda manifest: settings(manifest["params"]))


def as_then(params: dict) -> None:
    """Without what was to come, and with what is no more."""
    if "sample" in params:
        del params["sample"]["top_p"]
    if "lists" in params:
        params["lists"]["order"] = "by hand"


def written_again(folder: Path) -> None:
    """The page without what was to come."""
    run = AuditedRun(folder)
    settings = run.params.model_dump(mode="json")
    del settings["sample"]["top_p"]
    with contextlib.chdir(folder):
        hashes = {s: tree_hash(f"data/lists/{s}.parquet") for s in run.params.iterations}
        write_report(run.params, hashes, lambda output: Path(output), settings)


@pytest.fixture
def run(copy) -> Project:
    edit_text(copy.folder / "larpo/config/sections.py", '"""The sections', '"""All sections')
    copy.run("git", "commit", "-qam", "the code of that day")
    commit = copy.run("git", "rev-parse", "HEAD").stdout.strip()
    manifests(copy.folder, lambda manifest: manifest["git"].update(commit=commit))
    return copy


def checks(folder: Path) -> dict[str, Check]:
    found = AuditedRun(folder)
    return {c.name: c for c in [*check_bytes(found), *check_lineage(found), *check_science(found)]}


def test_an_older_run_is_audited_by_its_own_defaults(run):
    older(run.folder, as_then)
    written_again(run.folder)
    agree(run.folder)
    found = checks(run.folder)
    assert [(c.name, c.failures) for c in found.values() if c.failures] == []
    told = found[NAME]
    changed = "score.truncation_penalty 1.0 (today 0.0), lists.top 2 (today 1)"
    assert f"; defaults as the run had them: {changed}; " in told.detail, told.detail
    assert told.detail.endswith("newer than the run, taken as by default today: sample.top_p"), told.detail
    assert told.behind == ("lists.order: recorded as 'by hand', and the auditor's larpo has no such",)
    assert "sample.top_p" not in (run.folder / PAGE).read_text("utf-8")
    audited = AuditedRun(run.folder)
    assert (audited.params.lists.top, audited.written.lists.top) == (2, 1)


def test_the_page_of_an_older_run_is_held_against_what_it_had(run):
    older(run.folder, lambda params: params.get("sample", {}).pop("top_p", None))
    written_again(run.folder)
    agree(run.folder)
    assert (found := checks(run.folder)["report"]).verdict == "holds" and not found.behind, found
    edit_text(run.folder / PAGE, "<h2", "<h2 ")
    assert checks(run.folder)["report"].verdict == "fails"


def test_nodes_that_ran_by_different_defaults_are_named(run):
    older(run.folder, lambda params: None)
    edit_json(run.folder / "data/lists/2.manifest.json", lambda manifest: manifest["params"]["lists"].update(top=1))
    agree(run.folder)
    found = checks(run.folder)[NAME]
    assert found.verdict == "fails", found
    assert found.failures[0].startswith("data/lists/2.manifest.json: params: lists.top is 1"), found


def test_code_with_todays_defaults_had_no_others(copy):
    """Else a manifest could claim any."""
    older(copy.folder, lambda params: None)
    agree(copy.folder)
    found = checks(copy.folder)
    assert found[NAME].failures[0].endswith("lists.top is 2, params.yaml has 1"), found[NAME]
    assert found["lists"].verdict == "fails"
