"""Why two runs differ, on real ones: what was changed is named, and what only follows from it is not."""

import json
import shutil

import pytest
import yaml

from larpo.audit.diff.explain import Diff, explain, merged_order
from larpo.audit.open import AuditedRun
from tests.conftest import Project, larpo_command
from tests.larpo.audit.forgery import agree, edit_json, edit_table, flip


@pytest.fixture(scope="module")
def changed(finished_project: Project, tmp_path_factory: pytest.TempPathFactory, warm_nodes: dict[str, str]) -> Project:
    """The same run with another objective and more items; not all of what follows has run again."""
    project = finished_project.copy(tmp_path_factory.mktemp("diff") / "changed")
    project.set("objective: lambdarank", "objective: listmle")
    project.set("items: 8", "items: 9")
    project.variables = warm_nodes
    nodes = ("train@1", "items@held_out", "generate@0-held_out", "evaluate@0-held_out", "report")
    project.dvc("repro", "--single-item", *nodes)
    return project


def compared(a: AuditedRun, b: Project) -> Diff:
    return explain(a, AuditedRun(b.folder))


def test_a_run_equals_itself(honest, copy):
    diff = compared(honest, copy)
    assert diff.equal and not diff.missing and diff.lines()[-1] == f"no difference: {diff.nodes} nodes equal"
    done = larpo_command(copy.folder, "audit", "--diff", str(honest.folder), ".")
    assert done.returncode == 0 and f"no difference: {len(honest.graph)} nodes equal" in done.stdout


def test_two_causes_and_what_follows(honest, changed):
    diff = compared(honest, changed)
    objective, items = diff.changes
    assert (objective.kind, objective.what, objective.before, objective.after) == (
        "parameter",
        "train.objective",
        "lambdarank",
        "listmle",
    )
    assert objective.nodes == ("train@1", "report")
    assert (items.what, items.before, items.after) == ("benchmarks.held_out.items", "8", "9")
    assert items.nodes[0] == "items@held_out"
    assert diff.first == "train@1"
    assert diff.before == list(honest.graph).index("train@1") > 0
    assert "data/policy/1/" in diff.row and "tensor" in diff.row
    assert "train@1" in diff.caused and "items@held_out" in diff.caused and "sample@2" not in diff.caused
    assert diff.follows == {"generate": 1, "evaluate": 1, "report": 1}
    assert not diff.unexplained and not diff.altered
    assert ("held_out", "0", "items", 8, 9) in diff.scores
    told = "\n".join(diff.lines())
    assert "parameter  train.objective: lambdarank → listmle  [train@1, report]" in told
    json.dumps(diff.record())


def test_an_experiment_by_name_against_the_workspace(changed, tmp_path):
    project = changed.copy(tmp_path / "project")
    project.dvc("exp", "save", "--name", "other")
    project.run("git", "checkout", "-q", "--", "dvc.lock", "params.yaml")
    project.dvc("checkout", "-q", "--force")
    done = larpo_command(project.folder, "audit", "--diff", ".", "other", "--json")
    tree = json.loads(done.stdout)
    # `exp save` writes the parameters of nodes that did not run into dvc.lock: inputs depend on the benchmarks.
    assert done.returncode == 1 and tree["first"] == "inputs"
    assert {c["what"] for c in tree["changes"]} == {"train.objective", "benchmarks.held_out.items"}
    done = larpo_command(project.folder, "audit", "--diff", ".", "nothing")
    assert done.returncode == 2 and done.stderr.startswith("error: nothing: no folder")


def test_edited_code_and_a_default_written_out(honest, finished_project, copy, warm_nodes, tmp_path):
    code = copy.folder / "larpo/lists/recipes.py"
    title, rest = code.read_text().split("\n", 1)
    code.write_text(f"# Edited.\n{title.replace('Candidate', 'Some')}\n{rest}")
    copy.set("truncated: keep}", "truncated: keep, memory: all}")
    copy.variables = warm_nodes
    copy.dvc("repro", "--single-item", "lists@1")
    diff = compared(honest, copy)
    assert [(c.kind, c.what, c.nodes) for c in diff.changes] == [
        ("code", "larpo/lists/recipes.py", ("lists@1",)),
        ("parameter", "lists.memory", ("lists@1",)),
    ]
    assert diff.changes[0].detail.startswith('+2 −1 lines, first line 1: """Candidate lists Y_x (Section 3.3)')
    assert diff.changes[0].detail.endswith("→ # Edited.")
    assert (diff.changes[1].before, diff.changes[1].after) == ("all (default)", "all")
    assert diff.harmless == ["lists@1"] and not diff.diverged and not diff.equal
    # Where the folder has moved on, the version that was read is diff in Git, or nowhere.
    moved = finished_project.copy(tmp_path / "moved")
    (moved.folder / "larpo/lists/recipes.py").write_text("# Something else\n")
    assert compared(AuditedRun(moved.folder), copy).changes == diff.changes
    code.write_text("# Something else\n")
    assert compared(honest, copy).changes[0].detail == ""


def test_another_seed(honest, copy, warm_nodes):
    copy.set("seed: 0", "seed: 1")
    copy.variables = warm_nodes
    copy.dvc("repro", "--single-item", "prompts@1")
    diff = compared(honest, copy)
    assert [(c.kind, c.what, c.before, c.after, c.nodes) for c in diff.changes] == [
        ("seed", "seed", "0", "1", ("prompts@1",))
    ]
    assert diff.first == "prompts@1" and diff.diverged == diff.caused == ["prompts@1"]
    assert diff.row.startswith("data/prompts/1.parquet: row 0")


def test_bytes_altered_after_the_run(honest, copy):
    flip(copy.folder / "data/policy/1/model.safetensors")
    flip(copy.folder / "data/score/2.manifest.json")
    diff = compared(honest, copy)
    assert [row[:3] for row in diff.altered] == [
        ("b", "train@1", "data/policy/1"),
        ("b", "score@2", "data/score/2.manifest.json"),
    ]
    assert diff.first == "train@1" and diff.diverged == ["train@1"] and not diff.follows and not diff.unexplained
    assert diff.row.startswith("data/policy/1/model.safetensors: tensor")
    assert not diff.equal and not diff.changes


def another_commit(copy: Project) -> None:
    frame = copy.folder / "tasks/frame/node.py"
    frame.write_text(frame.read_text() + "# edited\n")
    copy.run("git", "commit", "-qam", "frame")
    head = copy.run("git", "rev-parse", "HEAD").stdout.strip()
    edit_json(copy.folder / "data/score/1.manifest.json", lambda m: m["git"].update(commit=head))


def recorded(section: str, key: str):
    return lambda copy: edit_json(
        copy.folder / "data/score/1.manifest.json", lambda m: m[section].update({key: "another"})
    )


SAME = "code, parameters and inputs"
REASONS = {
    "nothing": (lambda copy: None, f"not reproducible: {SAME}, packages and machine are recorded as equal", ""),
    "machine": (recorded("hardware", "cpu"), f"same {SAME}; the machine differs: cpu ", "→ another"),
    "package": (recorded("packages", "torch"), f"same {SAME}; the packages differ: torch ", "→ another"),
    "frame": (another_commit, f"same {SAME}; ", "code that no node declares differs: tasks/frame/node.py"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_may_be_the_reason_where_nothing_that_was_given_differs(reason, honest, copy):
    change, start, end = REASONS[reason]
    rewards = copy.folder / "data/score/1.parquet"
    edit_table(rewards, "rewards", lambda frame: frame.assign(reward=frame["reward"] + 0.5))
    change(copy)
    agree(copy.folder)
    diff = compared(honest, copy)
    assert list(diff.unexplained) == ["score@1"] and not diff.changes and not diff.altered
    assert diff.unexplained["score@1"].startswith(start) and diff.unexplained["score@1"].endswith(end)
    assert diff.first == "score@1" and "column reward" in diff.row


def test_a_model_from_outside_that_is_no_longer_the_same(honest, copy):
    edit_json(copy.folder / "data/policy/0.manifest.json", lambda m: m["notes"]["sources"][0].update(hash="another"))
    agree(copy.folder)
    (change,) = compared(honest, copy).changes
    assert change.kind == "data" and change.what.endswith("policy (hash)") and change.after == "another"


def test_nodes_in_one_run_only_and_outputs_that_are_not_there(honest, copy):
    lock = copy.folder / "dvc.lock"
    tree = yaml.safe_load(lock.read_text())
    del tree["stages"]["evaluate@2-held_out"]
    lock.write_text(yaml.safe_dump(tree, sort_keys=False))
    shutil.rmtree(copy.folder / "data/policy/1")
    diff = compared(honest, copy)
    assert diff.only_a == ["evaluate@2-held_out"] and diff.first == "evaluate@2-held_out" and not diff.equal
    assert diff.missing == ["b: data/policy/1"] and not diff.altered and not diff.diverged
    order = merged_order(honest, AuditedRun(copy.folder))
    assert all(order.index(need) < order.index(n.name) for n in honest.graph.values() for need in n.needs)
