"""Why two runs differ, on real ones: what was changed is named, and what only follows from it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from larpo.audit.command import diff_command
from larpo.audit.diff.explain import explain, merged_order
from larpo.audit.open import AuditedRun
from tasks.frame import warm
from tests.conftest import Project
from tests.larpo.audit.forgery import agree, edit_json, edit_table, flip


@pytest.fixture(scope="module")
def warmed() -> Iterator[dict[str, str]]:
    with warm.server({"OMP_NUM_THREADS": "1"}) as variables:
        yield variables


@pytest.fixture(scope="module")
def changed(finished_project: Project, tmp_path_factory: pytest.TempPathFactory, warmed: dict[str, str]) -> Project:
    """The same run with another objective and more items; not all of what follows has run again."""
    project = finished_project.copy(tmp_path_factory.mktemp("diff") / "changed")
    project.set("objective: lambdarank", "objective: listmle")
    project.set("items: 8", "items: 9")
    project.variables = warmed
    nodes = ("train@1", "items@held_out", "generate@0-held_out", "evaluate@0-held_out", "report")
    project.dvc("repro", "--single-item", *nodes)
    return project


@pytest.fixture
def copy(finished_project: Project, tmp_path: Path) -> Project:
    return finished_project.copy(tmp_path / "copy")


@pytest.fixture(scope="module")
def first(finished_project: Project) -> AuditedRun:
    return AuditedRun(finished_project.folder)


def compared(a: AuditedRun, b: Project):
    return explain(a, AuditedRun(b.folder))


def test_a_run_equals_itself(first, finished_project, copy, capsys):
    found = compared(first, copy)
    assert found.equal and not found.missing and found.lines()[-1] == f"no difference: {found.nodes} nodes equal"
    assert diff_command(str(finished_project.folder), str(copy.folder), as_json=False) == 0
    assert f"no difference: {len(AuditedRun(copy.folder).graph)} nodes equal" in capsys.readouterr().out


def test_two_causes_and_what_follows(first, changed):
    found = compared(first, changed)
    objective, items = found.changes
    assert (objective.kind, objective.what, objective.before, objective.after) == (
        "parameter",
        "train.objective",
        "lambdarank",
        "listmle",
    )
    assert objective.nodes == ("train@1", "report")
    assert (items.what, items.before, items.after) == ("benchmarks.held_out.items", "8", "9")
    assert items.nodes[0] == "items@held_out"
    assert found.first == "train@1"
    assert found.before == list(first.graph).index("train@1") > 0
    assert "data/policy/1/" in found.row and "tensor" in found.row
    assert "train@1" in found.caused and "items@held_out" in found.caused and "sample@2" not in found.caused
    assert found.follows == {"generate": 1, "evaluate": 1, "report": 1}
    assert not found.unexplained and not found.altered
    assert ("held_out", "0", "items", 8, 9) in found.scores
    told = "\n".join(found.lines())
    assert "parameter  train.objective: lambdarank → listmle  [train@1, report]" in told
    json.dumps(found.record())


def test_an_experiment_by_name_against_the_workspace(changed, first, tmp_path, monkeypatch, capsys):
    project = changed.copy(tmp_path / "project")
    project.dvc("exp", "save", "--name", "other")
    project.run("git", "checkout", "-q", "--", "dvc.lock", "params.yaml")
    project.dvc("checkout", "-q", "--force")
    monkeypatch.chdir(project.folder)
    assert diff_command(".", "other", as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == "train@1"
    assert {c["what"] for c in found["changes"]} == {"train.objective", "benchmarks.held_out.items"}
    assert diff_command(".", "nothing", as_json=False) == 2
    assert capsys.readouterr().err.startswith("error: nothing: no folder")


def test_edited_code_and_a_default_written_out(first, finished_project, copy, warmed, tmp_path):
    code = copy.folder / "larpo/lists/recipes.py"
    title, rest = code.read_text().split("\n", 1)
    code.write_text(f"# Edited.\n{title.replace('Candidate', 'Some')}\n{rest}")
    copy.set("truncated: keep}", "truncated: keep, memory: all}")
    copy.variables = warmed
    copy.dvc("repro", "--single-item", "lists@1")
    found = compared(first, copy)
    assert [(c.kind, c.what, c.nodes) for c in found.changes] == [
        ("code", "larpo/lists/recipes.py", ("lists@1",)),
        ("parameter", "lists.memory", ("lists@1",)),
    ]
    assert found.changes[0].detail.startswith('+2 −1 lines, first line 1: """Candidate lists Y_x (Section 3.3)')
    assert found.changes[0].detail.endswith("→ # Edited.")
    assert (found.changes[1].before, found.changes[1].after) == ("all (default)", "all")
    assert found.harmless == ["lists@1"] and not found.diverged and not found.equal
    # Where the folder has moved on, the version that was read is found in Git, or nowhere.
    moved = finished_project.copy(tmp_path / "moved")
    (moved.folder / "larpo/lists/recipes.py").write_text("# Something else\n")
    assert compared(AuditedRun(moved.folder), copy).changes == found.changes
    code.write_text("# Something else\n")
    assert compared(first, copy).changes[0].detail == ""


def test_another_seed(first, copy, warmed):
    copy.set("seed: 0", "seed: 1")
    copy.variables = warmed
    copy.dvc("repro", "--single-item", "prompts@1")
    found = compared(first, copy)
    assert [(c.kind, c.what, c.before, c.after, c.nodes) for c in found.changes] == [
        ("seed", "seed", "0", "1", ("prompts@1",))
    ]
    assert found.first == "prompts@1" and found.diverged == found.caused == ["prompts@1"]
    assert found.row.startswith("data/prompts/1.parquet: row 0")


def test_bytes_altered_after_the_run(first, copy):
    flip(copy.folder / "data/policy/1/model.safetensors")
    flip(copy.folder / "data/score/2.manifest.json")
    found = compared(first, copy)
    assert [row[:3] for row in found.altered] == [
        ("b", "train@1", "data/policy/1"),
        ("b", "score@2", "data/score/2.manifest.json"),
    ]
    assert found.first == "train@1" and found.diverged == ["train@1"] and not found.follows and not found.unexplained
    assert found.row.startswith("data/policy/1/model.safetensors: tensor")
    assert not found.equal and not found.changes


def reward_off(copy: Project) -> None:
    edit_table(copy.folder / "data/score/1.parquet", "rewards", lambda t: t.assign(reward=t["reward"] + 0.5))


def test_nothing_that_was_given_differs(first, copy):
    reward_off(copy)
    agree(copy)
    found = compared(first, copy)
    why = "not reproducible: code, parameters and inputs, packages and machine are recorded as equal"
    assert found.unexplained == {"score@1": why} and not found.changes and not found.altered
    assert found.first == "score@1" and "column reward" in found.row


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [("hardware", "cpu", "the machine differs: cpu"), ("packages", "torch", "the packages differ: torch")],
)
def test_another_machine_or_package(section, key, said, first, copy):
    reward_off(copy)
    edit_json(copy.folder / "data/score/1.manifest.json", lambda m: m[section].update({key: "another"}))
    agree(copy)
    found = compared(first, copy)
    assert found.unexplained["score@1"].startswith(f"same code, parameters and inputs; {said} ")
    assert found.unexplained["score@1"].endswith("→ another")


def test_code_that_no_node_declares(first, copy):
    frame = copy.folder / "tasks/frame/node.py"
    frame.write_text(frame.read_text() + "# edited\n")
    copy.run("git", "commit", "-qam", "frame")
    head = copy.run("git", "rev-parse", "HEAD").stdout.strip()
    reward_off(copy)
    edit_json(copy.folder / "data/score/1.manifest.json", lambda m: m["git"].update(commit=head))
    agree(copy)
    why = compared(first, copy).unexplained["score@1"]
    assert why.endswith("code that no node declares differs: tasks/frame/node.py")


def test_a_model_from_outside_that_is_no_longer_the_same(first, copy):
    edit_json(copy.folder / "data/policy/0.manifest.json", lambda m: m["notes"]["sources"][0].update(hash="another"))
    agree(copy)
    (change,) = compared(first, copy).changes
    assert change.kind == "data" and change.what.endswith("policy (hash)") and change.after == "another"


def test_nodes_in_one_run_only_and_outputs_that_are_not_there(first, copy):
    lock = copy.folder / "dvc.lock"
    tree = yaml.safe_load(lock.read_text())
    del tree["stages"]["evaluate@2-held_out"]
    lock.write_text(yaml.safe_dump(tree, sort_keys=False))
    shutil.rmtree(copy.folder / "data/policy/1")
    found = compared(first, copy)
    assert found.only_a == ["evaluate@2-held_out"] and found.first == "evaluate@2-held_out" and not found.equal
    assert found.missing == ["b: data/policy/1"] and not found.altered and not found.diverged
    order = merged_order(first, AuditedRun(copy.folder))
    assert all(order.index(need) < order.index(n.name) for n in first.graph.values() for need in n.needs)
