"""A run on checkpoints with code of their own, which its parameters let run: what it makes, what audits do with it."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from larpo.audit.bytes.check import check_bytes
from larpo.audit.lineage.check import check_lineage
from larpo.audit.lineage.code import NAME
from larpo.audit.open import AuditedRun
from larpo.audit.run import Selection, parts, reproducibility_card
from larpo.audit.science.check import OUTPUTS, REFERENCE, STEP0, check_science
from tests.bad_input.harness import invoke, params
from tests.conftest import Project
from tests.larpo.audit.forgery import flip
from tests.remote_code import CODE, KEY, turned, with_code
from tests.reward_models import decoder

pytestmark = pytest.mark.usefixtures("nobody_is_asked")


@pytest.fixture(scope="module")
def ran(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory, warm_nodes: dict[str, str]) -> Project:
    """A whole run, through DVC and warm nodes, on a policy and a reward model with code of their own; committed."""
    home = tmp_path_factory.mktemp("code")
    project = Project(home / "project", with_code(tiny_policy, home / "policy", home / "executed"))
    with_code(decoder(home / "llama_reward"), home / "reward", home / "executed")
    with contextlib.chdir(project.folder):
        params(
            {
                "policy.trust_remote_code": True,
                "iterations": {"1": {"previous": "0", "temperatures": [1.0]}},
                "evaluate.policies": ["1"],
                "reward.model": str(home / "reward"),
                "reward.trust_remote_code": True,
                "reward.max_length": 256,
                "score.reward": "sequence_classification",
                "benchmarks.held_out.options": {"rule": "final_number"},
            }
        )()
    project.run("git", "commit", "-qam", "code")
    project.variables = warm_nodes
    project.dvc("repro")
    project.variables = {}
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "run")
    return project


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(project: Project, path: str) -> dict:
    return json.loads((project.folder / f"data/{path}.manifest.json").read_text())


def test_every_policy_of_the_run_is_the_class_of_its_code(ran):
    for name in ("0", "1"):
        folder = ran.folder / f"data/policy/{name}"
        assert turned(folder)
        assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoConfig"] == "modeling_tiny.TinyConfig"
    before, after = (LlamaForCausalLM.from_pretrained(ran.folder / f"data/policy/{n}").state_dict() for n in "01")
    assert any(not torch.equal(before[key], after[key]) for key in before), "it was trained"


def test_what_was_executed_is_in_every_manifest_and_beside_the_weights(ran):
    source = ran.folder.parent
    expected = {name: sha256(source / "policy" / name) for name in CODE}
    for folder in ("policy/0", "policy/1", "reward"):
        assert {p.name: sha256(p) for p in (ran.folder / "data" / folder).glob("*.py")} == expected
    assert manifest(ran, "policy/0")["params"]["policy"]["trust_remote_code"] is True
    for node in ("policy/0", "sample/1", "reference/1", "train/1", "generate/1-held_out"):
        assert manifest(ran, node)["notes"]["remote_code"] == {KEY: expected}, node
    for node in ("reward", "score/1"):
        assert manifest(ran, node)["notes"]["remote_code"] == {"reward.trust_remote_code": expected}, node
    assert manifest(ran, "score/1")["notes"]["reward"]["code"] == expected
    assert "remote_code" not in manifest(ran, "lists/1")["notes"]


def test_scratch_and_the_working_folder_keep_no_copy(ran):
    copies = {p.parent.relative_to(ran.folder).as_posix() for p in ran.folder.rglob("modeling_tiny.py")}
    assert copies == {"data/policy/0", "data/policy/1", "data/reward"}


def test_one_bit_of_the_code_is_caught_before_it_runs_and_by_an_audit(ran, tmp_path):
    copy, executed = ran.copy(tmp_path / "copy"), ran.folder.parent / "executed"
    flip(copy.folder / "data/policy/0/modeling_tiny.py")
    before = executed.read_text()
    with contextlib.chdir(copy.folder):
        status, said = invoke(["sample", "1"])
    assert status == 2 and "data/policy/0, needed by sample@1" in said and "dvc.lock" in said
    assert executed.read_text() == before
    failures = [line for check in check_bytes(AuditedRun(copy.folder)) for line in check.failures]
    assert any(line.startswith("data/policy/0/modeling_tiny.py: ") for line in failures), failures
    code = next(c for c in check_lineage(AuditedRun(copy.folder)) if c.name == NAME)
    assert code.verdict == "fails" and "modeling_tiny.py" in code.failures[0]


def test_an_audit_of_ones_own_run_runs_it_and_names_it(ran):
    run, executed = AuditedRun(ran.folder), ran.folder.parent / "executed"
    before = len(executed.read_text())
    checks = {c.name: c for c in check_science(run, trusted=True)}
    assert {c.verdict for c in checks.values()} == {"holds", "counted"}, checks
    assert len(executed.read_text()) > before
    code = next(c for c in check_lineage(run) if c.name == NAME)
    assert code.verdict == "holds" and code.checked == 7
    assert f"modeling_tiny.py sha256 {sha256(ran.folder / 'data/policy/0/modeling_tiny.py')[:12]}" in code.detail
    evidence = next(a for a in reproducibility_card(run, [code]) if a.variable == "Open source code").evidence
    assert any(KEY in line and "modeling_tiny.py" in line for line in evidence)
    assert any("reward.trust_remote_code" in line for line in evidence)


def test_an_audit_of_a_strangers_run_runs_none(ran, monkeypatch):
    """Whatever the stranger's own parameters say; with --again it does as they say."""
    run, executed = AuditedRun(ran.folder), ran.folder.parent / "executed"
    before = executed.read_text()
    science = parts(run, Selection(), own=False, say=lambda line: None)["science"]
    checks = {c.name: c for c in science()}
    refused = {name: c.detail for name, c in checks.items() if c.verdict == "not checked"}
    assert set(refused) == {"rewards", OUTPUTS, REFERENCE, STEP0}
    assert all("custom code (modeling_tiny.py)" in why and "--again" in why for why in refused.values()), refused
    assert {c.verdict for name, c in checks.items() if name not in refused} == {"holds", "counted"}
    assert executed.read_text() == before
    trust: list[bool] = []
    monkeypatch.setattr("larpo.audit.run.check_science", lambda run, trusted: trust.append(trusted) or [])
    for requested, own in [(True, False), (False, False), (False, True)]:
        parts(run, Selection(requested=requested), own, say=lambda line: None)["science"]()
    assert trust == [True, False, True]


def test_a_parameter_that_was_switched_off_stops_every_node_and_the_audit(ran, tmp_path, monkeypatch):
    copy, executed = ran.copy(tmp_path / "copy"), ran.folder.parent / "executed"
    monkeypatch.chdir(copy.folder)
    params({"policy.trust_remote_code": False, "reward.trust_remote_code": False})()
    before = executed.read_text()
    for node in ("policy", "sample 1", "reference 1", "train 1", "generate 1 held_out"):
        status, said = invoke(node.split())
        assert status == 2 and len(said.strip().splitlines()) == 1, said
        assert "modeling_tiny.py" in said and f"set {KEY}: true in params.yaml" in said
        assert ("policy.model" if node == "policy" else "data/policy/") in said
    for node in ("reward", "score 1"):
        status, said = invoke(node.split())
        assert status == 2 and "set reward.trust_remote_code: true in params.yaml" in said, said
    checks = {c.name: c for c in check_science(AuditedRun(copy.folder), trusted=True)}
    for name in ("rewards", OUTPUTS, REFERENCE, STEP0):
        assert checks[name].verdict == "not checked" and "trust_remote_code is false" in checks[name].detail
    assert executed.read_text() == before
