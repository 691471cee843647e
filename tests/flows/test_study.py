"""A study on the real graph and a tiny policy: what runs share, what is resumed, what the page says."""

import json
import os
import sys
from dataclasses import replace

import pytest
import yaml

from flows.study import counts_of
from larpo.studies import expand, load_study
from larpo.studies.spec import Rule
from larpo.workspace.study import Runner, alone
from tests.conftest import Project, larpo_command

STUDY = """
name: small
title: A small study
paper: Table 3
about: Two objectives, one iteration.
scales:
  cpu:
    base: base.yaml
    policy: "1"
    rule: {primary: score, first_seed: 100, looks: [2, 3], level: 0.0294, margin: 0.5}
    set: {iterations: {"1": {previous: "0", temperatures: [1.0]}}}
cells:
  lambdarank: {label: LambdaRank}
  listmle: {label: ListMLE, set: {train.objective: listmle}}
measures:
  score: {label: greedy, cpu: {file: "data/evaluate/{policy}-held_out.json", key: greedy/accuracy}}
  length: {label: tokens, cpu: {file: "data/evaluate/{policy}-held_out.json", key: mean_length, percent: false}}
  overlap: {label: overlap, cpu: {file: report/hardness.json, key: 1/negatives/own/all/overlap}}
claims:
  F4: [{says: ListMLE above LambdaRank, more: [listmle], less: [lambdarank]}]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_policy) -> Project:
    made = Project(tmp_path_factory.mktemp("study") / "project", tiny_policy)
    studies = made.folder / "studies"
    studies.mkdir()
    (studies / "base.yaml").write_text((made.folder / "params.yaml").read_text())
    (studies / "small.yaml").write_text(STUDY)
    made.run("git", "add", "-A")
    made.run("git", "commit", "-q", "-m", "study")
    return made


def study(project: Project, name: str, jobs: int, *arguments: str, check: bool = True):
    command = [sys.executable, "-m", "flows.cli", "study", name, "--jobs", str(jobs), *arguments]
    return project.run(*command, check=check)


def records(project: Project) -> dict[str, dict]:
    found = (project.folder / ".larpo/studies/small-cpu").glob("*.json")
    return {p.stem: json.loads(p.read_text()) for p in found}


def locked(project: Project, experiment: str) -> dict:
    """dvc.lock of an experiment: output → hash."""
    name = next(
        line.split()[1]
        for line in project.run("git", "show-ref").stdout.splitlines()
        if line.endswith(f"/{experiment}") and "/exps/" in line
    )
    lock = yaml.safe_load(project.run("git", "show", f"{name}:dvc.lock").stdout)
    return {o["path"]: o["md5"] for s in lock["stages"].values() for o in s["outs"]}


@pytest.mark.slow
def test_a_study_from_nothing_to_its_page(project):
    done = study(project, "small", 2)
    assert "F4" in done.stdout, done.stdout
    kept = records(project)
    assert sorted(kept) == ["lambdarank-s100", "lambdarank-s101", "listmle-s100", "listmle-s101"]
    result = json.loads((project.folder / "studies/results/small-cpu.json").read_text())
    for cell in ("lambdarank", "listmle"):
        values = result["cells"][cell]["measures"]["length"]["values"]
        assert (
            values == [kept[f"{cell}-s{seed}"]["values"]["length"]["value"] for seed in (100, 101)] and min(values) > 0
        )
    assert (project.folder / "report/studies/small-cpu.html").read_text().count("ListMLE") >= 1
    assert "small" in (project.folder / "docs/findings.md").read_text()
    assert project.run("git", "status", "--porcelain", "params.yaml").stdout == "", "nobody's params.yaml is edited"

    # Manifests hold times: equal hashes mean that the node ran once and was restored for the other cell.
    one, other = (locked(project, f"small-cpu-{cell}-s100") for cell in ("lambdarank", "listmle"))
    for shared in ("data/sample/1.manifest.json", "data/lists/1.manifest.json", "data/reference/1.manifest.json"):
        assert one[shared] == other[shared], shared
    assert one["data/policy/1"] != other["data/policy/1"]
    assert one["data/sample/1.parquet"] != locked(project, "small-cpu-lambdarank-s101")["data/sample/1.parquet"]


@pytest.mark.slow
def test_only_what_is_missing_runs_again(project):
    before = records(project)
    (project.folder / ".larpo/studies/small-cpu/listmle-s101.json").unlink()
    page = project.folder / "report/studies/small-cpu.html"
    text = page.read_text()
    page.unlink()
    done = study(project, "small", 1)
    assert "3 of them measured before" in done.stderr + done.stdout
    after = records(project)
    assert {k: v["values"] for k, v in after.items()} == {k: v["values"] for k, v in before.items()}
    assert all(after[k] == before[k] for k in before if k != "listmle-s101")
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("seeds", "until_decided", "expected"),
    [(None, False, [8, 16]), (5, False, [5]), (13, True, [8, 10, 12, 13]), (6, True, [6])],
)
def test_when_a_study_is_read(seeds, until_decided, expected):
    """At its looks, at a number that is asked for, or by the e-value with two more seeds each time."""
    rule = Rule(primary="score", first_seed=100, looks=[8, 16], level=0.0294, margin=0.02)
    assert counts_of(rule, seeds, until_decided, jobs=2) == expected


def test_an_overlay_makes_other_runs(project):
    """Sections of a file are laid over the base: other parameters, so what was measured counts no more."""
    (project.folder / "over.yaml").write_text("train: {epochs: 2}\n")
    found = load_study(project.folder / "studies", "small")
    overlay = [str(project.folder / "over.yaml")]
    runs, other = (expand(found, project.folder / "studies", "cpu", 1, o) for o in ([], overlay))
    runner = Runner(project.folder, found.sources("cpu"), {})
    assert [runner.finished(run) is not None for run in runs] == [True, True]
    assert [runner.finished(run) for run in other] == [None, None]
    assert [(r.params["train"]["epochs"], r.params["train"]["objective"]) for r in other] == [
        (2, "lambdarank"),
        (2, "listmle"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0"], "seeds: expected 1 or more"),
        (["--jobs", "0"], "jobs: expected 1 or more"),
        (["--scale", "paper"], "no scale 'paper'"),
        (["--with", "absent.yaml"], "absent.yaml: not found; expected sections of params.yaml"),
    ],
)
def test_wrong_input_is_one_line_before_anything_starts(project, arguments, words):
    done = larpo_command(project.folder, "study", "small", "--jobs", "2", *arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_change_of_code_or_of_a_data_file_makes_records_stale_and_a_comment_of_the_report_does_not(project):
    runner = Runner(project.folder, load_study(project.folder / "studies", "small").sources("cpu"), {})
    (run, *_) = expand(load_study(project.folder / "studies", "small"), project.folder / "studies", "cpu")
    data = project.folder / "data/rows.jsonl"
    data.parent.mkdir(exist_ok=True)
    data.write_text("{}")
    named = replace(run, params=run.params | {"x": [{"data": str(data)}]})

    def identities() -> tuple[str, str]:
        fresh = Runner(project.folder, runner.sources, {})
        return fresh.identity(run, project.folder), fresh.identity(named, project.folder)

    before = identities()
    data.write_text("[]")
    assert identities()[0] == before[0] and identities()[1] != before[1]
    data.write_text("{}")
    for path, counts in (("larpo/lists/recipes.py", True), ("tasks/sample.py", True), ("larpo/report/page.py", False)):
        file = project.folder / path
        text = file.read_text()
        file.write_text(text + "# more\n")
        assert (identities() != before) is counts, path
        file.write_text(text)
    assert identities() == before
    other = replace(run, params=run.params | {"seed": 9})
    assert runner.identity(other, project.folder) != before[0]


def test_one_process_at_a_time_works_on_a_study(project, monkeypatch):
    """The other is named before a server is started."""
    monkeypatch.setattr("larpo.workspace.lock.WAIT_SECONDS", 0.5)
    monkeypatch.setattr("flows.study.some_server", None)
    with alone(project.folder, "small", "cpu"):
        done = larpo_command(project.folder, "study", "small")
    assert done.returncode == 1, done.stderr
    assert f"study small at scale cpu is already being run in this folder, by process {os.getpid()}" in done.stderr


@pytest.mark.slow
def test_a_run_that_fails_is_named_in_one_line_and_the_others_are_kept(project):
    """The second cell asks for more prompts than its dataset has, which only its own node can find out."""
    (project.folder / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    text = (project.folder / "studies/small.yaml").read_text()
    broken = text.replace("name: small", "name: broken").replace(
        "set: {train.objective: listmle}",
        "set: {prompts: {source: dataset, dataset: rows.jsonl, answer_field: answer, held_out: 0.1, per_iteration: 9}}",
    )
    (project.folder / "studies/broken.yaml").write_text(broken)
    done = study(project, "broken", 1, "--seeds", "1", check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("failed: 1 of 2 runs failed: broken-cpu-listmle-s100"), done.stderr
    assert "9 asked for by prompts.per_iteration" in last
    kept = [p.stem for p in (project.folder / ".larpo/studies/broken-cpu").glob("*.json")]
    assert kept == ["lambdarank-s100"]
