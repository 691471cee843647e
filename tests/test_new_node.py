"""A new kind of node is one stage and one module; and what a stage declares is what its node reads."""

import json
import re
import sys
import textwrap

import pytest

from larpo.graph import kinds, read_stages, unroll
from larpo.load import load_params
from tasks.frame.node import CODE, Node
from tests.conftest import ROOT, Project, larpo_command
from tests.test_docs import blocks


@pytest.fixture(scope="module")
def project(finished_project, tmp_path_factory, warm_nodes) -> Project:
    """The finished run with the new kind of node of docs/extending.md, and the reference of both iterations from the
    initial policy."""
    stage, module = blocks(ROOT / "docs/extending.md", "## A node")
    project = finished_project.copy(tmp_path_factory.mktemp("new") / "project")
    graph = project.folder / "dvc.yaml"
    graph.write_text(
        graph.read_text("utf-8").replace("\n  report:\n", f"\n{textwrap.indent(stage, '  ')}\n  report:\n"), "utf-8"
    )
    (project.folder / "tasks/lengths.py").write_text(module)
    project.set("reference: {model: previous", "reference: {model: initial")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "a new kind of node")
    project.variables = warm_nodes
    project.dvc("repro", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "run")
    return project


def recorded(project: Project, path: str) -> dict:
    return json.loads((project.folder / path).read_text("utf-8"))


def test_a_new_kind_runs_and_records(project):
    assert len(recorded(project, "data/lengths/2.json")["tokens"]) == 72
    record = recorded(project, "data/lengths/2.manifest.json")
    assert list(record["inputs"]) == ["data/sample/2.parquet"] and record["params"].keys() == {"seed", "iterations.2"}


def test_a_new_kind_is_planned(project):
    """By the project's own code."""
    done = project.run(sys.executable, "-m", "flows.cli", "plan", check=False)
    assert "lengths@2" in done.stdout


def test_a_new_kind_is_audited_and_the_initial_policy_is_declared(project):
    """reference@2 reads policy 0 beside what iteration 2 starts from, and runs again where only what its stage names
    is there."""
    record = recorded(project, "data/reference/2.manifest.json")
    assert record["notes"]["reference_policy"] == "0"
    assert record["inputs"].keys() >= {"data/policy/0", "data/policy/1"}
    done = larpo_command(project.folder, "audit", "--node", "lengths@1", "--node", "reference@2")
    # The auditor here is another checkout, which has no such kind: it says so, and vouches for nothing of it.
    assert done.returncode == 3 and re.search(r"\b(\d+) of \1 nodes", done.stdout), done.stdout
    assert "tasks/lengths.py is not the auditor's" in done.stdout.splitlines()[0]
    again = [line.split() for line in done.stdout.splitlines()]
    assert {line[0] for line in again if line[1:3] == ["holds", "bit-identical;"]} == {"lengths@1", "reference@2"}


def test_a_new_kind_is_packed(project, tmp_path):
    pack = str(tmp_path / "run.larpo.tar")
    assert larpo_command(project.folder, "pack", "--out", pack).returncode == 0
    assert larpo_command(project.folder, "unpack", pack, str(tmp_path / "unpacked")).returncode == 0
    assert (tmp_path / "unpacked/data/lengths/2.json").is_file()


def test_a_node_takes_its_paths_from_its_stage(monkeypatch):
    monkeypatch.chdir(ROOT)
    node = Node("evaluate", "0-held_out")
    assert node["items"] == "data/items/held_out.parquet" and node["generate"] == "data/generate/0-held_out.parquet"
    node.scratch = ROOT / "scratch"
    place = node.place("evaluate", ".json")
    assert place.relative_to(node.scratch).as_posix() == "publish/data/evaluate/0-held_out.json"
    for wrong in (lambda: node["lists"], lambda: node.place("evaluate")):  # not declared; two outputs of that name
        with pytest.raises(ValueError, match=r"evaluate@0-held_out: .* names [02] of data/"):
            wrong()
    assert node.manifest_path.as_posix() == "data/evaluate/0-held_out.manifest.json"
    assert node.settings.keys() == {"score", "judges", "benchmarks.held_out"}
    assert Node("reference", "2")["policy", "1"] == "data/policy/1"
    # The report depends on folders; it reads what other stages make in them, and no record.
    read = [path.as_posix() for path in Node("report").inputs]
    assert {"data/lists/3.parquet", "data/train/1", "data/evaluate/retrieval-passage_sample.json"} <= set(read)
    assert not [path for path in read if path.endswith(".manifest.json")]
    assert Node("report").settings.keys() == load_params().model_dump().keys()


def test_every_stage_says_what_it_is(monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = unroll(read_stages(), load_params().model_dump(mode="json"))
    for stage in stages.values():
        assert stage.desc.endswith("."), stage.name
        assert stage.kind in ("inputs", "report") or stage.meta.row is not None, stage.name
        assert len([out for out in stage.outs if out.endswith(".manifest.json")]) == 1, stage.name
        assert [dep for dep in stage.deps if dep.startswith(CODE)], stage.name
    assert stages["evaluate@3-held_out"].meta.row == "3"
    assert list(kinds()) == list(read_stages())
