"""A parameter may write a path in any way: an honest run's audit holds."""

import contextlib
import json

import pytest

from larpo.audit.bytes.check import declared_as_run, files_as_locked
from larpo.audit.lineage.check import _inside, records
from larpo.audit.open import AuditedRun
from larpo.workspace.dvc import dvc
from tests.conftest import ROOT, TINY_PARAMS

# A graph of one node, which records itself as every node does.
GRAPH = "stages: {retrieve: {cmd: python -m made, deps: %s, outs: [data/out, data/out.manifest.json]}}"
MADE = """
import sys; sys.path.insert(0, {root!r})
import larpo.graph, tasks.frame.node as frame
frame.read_stages = lambda: larpo.graph.read_stages("dvc.yaml")
with frame.Node("retrieve") as node:
    node.out("out").write_text("made")
    node.rows(read=1, written=1)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_policy) -> AuditedRun:
    base = tmp_path_factory.mktemp("paths")
    folder = base / "project"
    (folder / "data/d").mkdir(parents=True)
    (base / "out.jsonl").write_text("outside\n")
    (folder / "data/x.jsonl").write_text("inside\n")
    (folder / "data/d/y.jsonl").write_text("in a folder\n")
    ways = ["data/x.jsonl", "./data/x.jsonl", f"{folder}/data/x.jsonl", "data/d/../x.jsonl", "data//x.jsonl"]
    ways += ["data/d/", "./data/d", "../out.jsonl", f"{base}/out.jsonl"]
    (folder / "params.yaml").write_text(TINY_PARAMS.format(policy=tiny_policy))
    (folder / "dvc.yaml").write_text(GRAPH % json.dumps(ways))
    (folder / "made.py").write_text(MADE.format(root=str(ROOT)))
    with contextlib.chdir(folder):
        dvc(folder, "init", "--no-scm", "-q")
        dvc(folder, "repro", "-q")
    return AuditedRun(folder)


@pytest.mark.parametrize(
    "check",
    [
        records,
        declared_as_run,
        lambda run: files_as_locked(run, "given", {p: e for n in run.nodes for p, e in n.deps.items()}),
    ],
    ids=["records", "declared", "files"],
)
def test_an_honest_run_holds(run, check):
    found = check(run)
    assert found.failures == () and found.checked >= 1
    assert set(run.nodes[0].deps) == {"data/x.jsonl", "data/d", "../out.jsonl", str(run.folder.parent / "out.jsonl")}


def test_a_record_may_not_lead_elsewhere():
    assert _inside("data/d/y", {"data/d"}) and _inside("../out", {"../out"})
    assert not _inside("data/d/../../../etc/passwd", {"data/d"}) and not _inside("../other", {"../out"})
