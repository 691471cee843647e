"""Commands with wrong arguments, in wrong places: `larpo score`, `plan`, `study`, the flow, and nodes by name."""

import json
import shutil
from pathlib import Path

import yaml

from larpo.workspace.git import git
from tests.bad_input.harness import Case, both, nothing, param, refused, rows, text

ROW = {"question": "1 + 1?", "answer": "2", "response": "2"}
GOOD = json.dumps(ROW) + "\n"
DEEP = "[" * 100_000


RULE = {"primary": "m", "first_seed": 100, "looks": [2], "level": 0.05, "margin": 0.02}


def study(**changes: object):
    """A study of one's own beside a base."""
    whole = {
        "name": "mine",
        "title": "t",
        "paper": "p",
        "about": "a",
        "scales": {"cpu": {"base": "cpu.yaml", "rule": RULE}},
        "cells": {"one": {"label": "One", "policy": "2"}},
        "measures": {"m": {"label": "M", "cpu": {"file": "data/evaluate/{policy}-held_out.json", "key": "items"}}},
    } | changes
    return both(
        lambda: Path("studies").mkdir(),
        lambda: shutil.copy("params.yaml", "studies/cpu.yaml"),
        text("studies/mine.yaml", yaml.safe_dump(whole, sort_keys=False)),
    )


WRONG_COMMANDS = rows(
    # larpo score
    ("no such benchmark", text("o.jsonl", GOOD), "larpo score gsm9k o.jsonl", ("'gsm9k'", "'gsm8k'")),
    ("no such file", nothing, "larpo score gsm8k o.jsonl", ("o.jsonl: not found",)),
    ("a folder", nothing, "larpo score gsm8k data", ("cannot load 'data'",)),
    ("no such option", text("o.jsonl", GOOD), "larpo score gsm8k o.jsonl --sed 3", ("option 'sed' does not exist",)),
    ("an option that is no number", text("o.jsonl", GOOD), "larpo score mixeval o.jsonl --seed x", ("options.seed",
      "valid integer", "'x'")),
    ("an option without a value", text("o.jsonl", GOOD), "larpo score mixeval o.jsonl --seed", ("--seed expects",)),
    ("one argument too many", text("o.jsonl", GOOD), "larpo score gsm8k o.jsonl more", ("'more' is not expected",)),
    ("a benchmark of a run's own outputs", text("o.jsonl", GOOD), "larpo score held_out o.jsonl", ("own outputs",)),
    ("outputs that are no JSON", text("o.jsonl", GOOD + "{"), "larpo score gsm8k o.jsonl", ("o.jsonl, line 2", "JSON")),
    ("outputs nested without end", text("o.jsonl", DEEP), "larpo score gsm8k o.jsonl", ("o.jsonl", "not valid JSON")),
    ("outputs that are numbers", text("o.jsonl", "1\n"), "larpo score gsm8k o.jsonl", ("o.jsonl, line 1", "an object")),
    ("empty outputs", text("o.jsonl", ""), "larpo score gsm8k o.jsonl", ("o.jsonl: no rows",)),
    ("outputs that are not UTF-8", text("o.jsonl", b"\xff\xfe"), "larpo score gsm8k o.jsonl", ("not UTF-8",)),
    ("outputs that are no gzip", text("o.jsonl.gz", GOOD), "larpo score gsm8k o.jsonl.gz", ("not readable",)),
    ("a response that is a number", text("o.jsonl", json.dumps(ROW | {"response": 2})), "larpo score gsm8k o.jsonl",
      ("o.jsonl, line 1", "response", "found 2")),
    ("no answers", text("o.jsonl", json.dumps({"response": "2"})), "larpo score math o.jsonl", ("o.jsonl, line 1",)),
    ("annotations of nothing", text("o.json", "[{}]"), "larpo score alpaca_eval o.json", ("o.json, row 0",
      "preference")),
    ("questions without an id", text("o.jsonl", GOOD), "larpo score mixeval o.jsonl --data data",
      ("data/free-form.json",)),
    # larpo plan
    ("plan without parameters", nothing, "larpo plan --params no.yaml", ("no.yaml: not found",)),
    ("plan of wrong parameters", param("train.objective", "dpoo"), "larpo plan", ("train.objective", "'dpo'")),
    ("plan with a missing overlay", nothing, "larpo plan --with no.yaml", ("no.yaml: not found",)),
    ("plan with an overlay that is a list", text("o.yaml", "[1]"), "larpo plan --with o.yaml", ("o.yaml", "mapping")),
    ("plan with a key that stands twice", text("o.yaml", "seed: 1\nseed: 2\n"), "larpo plan --with o.yaml", ("o.yaml",
      'found duplicate key "seed"')),
    ("plan with an object of Python", text("o.yaml", "seed: !!python/object/apply:os.system ['touch pwned']"),
      "larpo plan --with o.yaml", ("o.yaml", "constructor")),
    ("plan with an unknown key", text("o.yaml", "sead: 1"), "larpo plan --with o.yaml", ("o.yaml", "sead", "'seed'")),
    ("plan with an unknown assumption", nothing, "larpo plan --assume flopss=1", ("flopss",)),
    ("plan with half an assumption", nothing, "larpo plan --assume flops", ("flops", "NAME=VALUE")),
    # larpo study
    ("no such study", study(), "larpo study nine", ("studies/nine.yaml: not found", "mine")),
    ("a study outside of studies", study(), "larpo study ../params", ("../params", "a name in studies/")),
    ("a study far outside", study(), "larpo study ../../../etc/passwd", ("a name in studies/",)),
    ("a study by an absolute name", study(), "larpo study /etc/passwd", ("a name in studies/",)),
    ("a study of no scale", study(), "larpo study mine --scale gpu", ("gpu", "cpu")),
    ("a study of no seeds", study(), "larpo study mine --seeds 0", ("seeds", "0")),
    ("a study side by side with nobody", study(), "larpo study mine --jobs 0", ("jobs", "1 or more", "0")),
    ("a study that is no YAML", both(study(), text("studies/mine.yaml", "[")), "larpo study mine", ("mine.yaml",)),
    ("a study nested without end", both(study(), text("studies/mine.yaml", DEEP)), "larpo study mine", ("mine.yaml",
      "not valid YAML")),
    ("a study that is not UTF-8", both(study(), text("studies/mine.yaml", b"name: \xff")), "larpo study mine",
      ("mine.yaml", "not valid YAML")),
    ("a study with an object of Python", both(study(), text("studies/mine.yaml",
      "name: !!python/object/apply:os.system ['touch pwned']")), "larpo study mine", ("mine.yaml", "constructor")),
    ("a study of another name", study(name="yours"), "larpo study mine", ("mine.yaml", "'mine'", "'yours'")),
    ("a base outside of studies", study(scales={"cpu": {"base": "../params.yaml", "rule": RULE}}), "larpo study mine",
      ("mine.yaml", "scales.cpu.base", "'../params.yaml'")),
    ("a measure outside of the run", study(measures={"m": {"label": "M", "cpu": {"file": "/etc/passwd", "key": "x"}}}),
      "larpo study mine", ("mine.yaml", "measures.m.cpu.file", "'/etc/passwd'")),
    ("a cell whose name is a path", study(cells={"../x": {"label": "One"}}), "larpo study mine", ("mine.yaml",
      "cells.../x", "pattern")),
    ("a study outside of Git", study(), "larpo study mine", ("starts from a Git commit", "commit first")),
    # The flow
    ("an override of an unknown key", nothing, "flows.run --set train.objectiv=dpo", ("train.objectiv", "exist")),
    ("an override that is none", nothing, "flows.run --set train", ("'train'", "key=value")),
    ("an override that sweeps", nothing, "flows.run --set seed=1,2", ("one value",)),
    ("fewer iterations than one", nothing, "flows.run --iterations 0", ("iterations", "1 or more", "0")),
    ("an unknown objective", nothing, "flows.run --objective dpoo", ("train.objective", "'dpo'")),
    ("a target without DVC", nothing, "flows.run --target train@1", ("dvc.yaml", "DVC")),
    # Nodes by names that are paths
    ("an iteration that is a path", nothing, "sample ../../x", ("iterations.../../x",)),
    ("a benchmark that is a path", nothing, "items ../x", ("benchmarks.../x",)),
    ("a policy that is a path", nothing, "generate ../0 held_out", ("evaluate.policies: '../0'",)),
    ("a policy to evaluate that is a path", nothing, "evaluate /0 held_out", ("evaluate.policies: '/0'",)),
    ("an absolute iteration", nothing, "lists /etc/passwd", ("iterations./etc/passwd",)),
)  # fmt: skip


@WRONG_COMMANDS
def test_wrong_commands(workspace, case: Case):
    refused(case)
    assert not Path("pwned").exists()


def test_outside_of_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, words in (
        ("sample 1", "params.yaml: not found"),
        ("report", "params.yaml: not found"),
        ("larpo plan", "params.yaml: not found"),
        ("larpo study table3", "studies/table3.yaml: not found"),
        ("flows.run", "params.yaml: not found"),
        ("flows.serve", "dvc.yaml: not found"),
    ):
        refused(Case(run, nothing, run, (words,)))


def test_in_a_git_repository_without_a_commit(workspace):
    git(workspace, "init", "-q")
    refused(Case("", nothing, "train 1", (".git: no commit yet", "git commit")))


def test_one_real_process(finished_project, tmp_path):
    """The same through the interpreter: nothing but the line, status 2, nothing written."""
    project = finished_project.copy(tmp_path / "project")
    project.set("objective: lambdarank", "objective: lamdarank")
    before = sorted(p for p in project.folder.rglob("*") if "__pycache__" not in p.parts)
    done = project.node("prompts", "1", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith("error: params.yaml: train.objective") and "lambdarank" in done.stderr
    assert sorted(p for p in project.folder.rglob("*") if "__pycache__" not in p.parts) == before
