"""Code that a checkpoint brings: never run unless a parameter says so, and then from the checkpoint alone and recorded.

The checkpoint is real: two Python files beside its weights, one of which writes a file whenever it is imported.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaForCausalLM, dynamic_module_utils

from flows.audit.audit import Again, check_science, parts_of, reproducibility_card
from flows.audit.code import NAME
from flows.audit.files import check_bytes
from flows.audit.lineage import check_lineage
from flows.audit.run import AuditedRun
from larpo import remote_code
from larpo.checkpoints import load_model
from larpo.engines import build_engine
from larpo.errors import UserError
from larpo.initial_policy import fetch_initial_policy
from larpo.params import EngineParams, load_params
from larpo.plan import Assumptions, build_plan
from larpo.plan.needs import needs_of
from larpo.reward_checkpoints import load_classifier
from larpo.sections import PolicyParams
from tasks import warm
from tests.bad_input.harness import invoke, param, params
from tests.conftest import Project
from tests.flows.forgery import flip
from tests.remote_code import CLASSES, HELPER, modeling, with_code
from tests.reward_models import decoder

CODE = ("modeling_tiny.py", HELPER)
KEY = "policy.trust_remote_code"
PROMPT = torch.tensor([[3, 6, 15, 7]])


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    """transformers would ask at the terminal where it is not told."""
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail(f"asked at the terminal: {args}"))
    yield
    remote_code.begin()


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def brought(tiny_policy: Path, tmp_path: Path, marker: Path) -> Path:
    """A checkpoint with code of its own, as policy.model of the working folder's params.yaml would name it."""
    return with_code(tiny_policy, tmp_path / "brought", marker)


@pytest.fixture(scope="module")
def ran(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
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
    with warm.server({"OMP_NUM_THREADS": "1"}) as project.variables:
        project.dvc("repro")
    project.variables = {}
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "run")
    return project


def turned(folder: Path) -> bool:
    """Whether the checkpoint's logits are those of a Llama with its weights, their sign turned."""
    remote_code.admit(folder, KEY, True)
    llama = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return torch.equal(load_model(folder, "float32").eval()(PROMPT).logits, -llama(PROMPT).logits)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(project: Project, path: str) -> dict:
    return json.loads((project.folder / f"data/{path}.manifest.json").read_text())


# A run whose parameters let it -------------------------------------------------------------------------------------


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
    parts = parts_of(run, Again(), own=False, say=lambda line: None)
    checks = {c.name: c for c in parts["science"]()}
    refused = {name: c.detail for name, c in checks.items() if c.verdict == "not checked"}
    assert set(refused) == {"rewards", "reference log-probabilities", "losses at step 0"}
    assert all("custom code (modeling_tiny.py)" in why and "--again" in why for why in refused.values()), refused
    assert {c.verdict for name, c in checks.items() if name not in refused} == {"holds", "counted"}
    assert executed.read_text() == before
    asked: list[bool] = []
    monkeypatch.setattr("flows.audit.audit.check_science", lambda run, trusted: asked.append(trusted) or [])
    for again, own in [(Again(asked=True), False), (Again(asked=False), False), (Again(asked=False), True)]:
        parts_of(run, again, own, say=lambda line: None)["science"]()
    assert asked == [True, False, True]


def test_a_parameter_that_was_switched_off_stops_every_node_and_the_audit(ran, tmp_path, monkeypatch):
    copy, executed = ran.copy(tmp_path / "copy"), ran.folder.parent / "executed"
    monkeypatch.chdir(copy.folder)
    params({"policy.trust_remote_code": False, "reward.trust_remote_code": False})()
    before = executed.read_text()
    for node in ("policy", "sample 1", "reference 1", "train 1", "generate 0 held_out"):
        status, said = invoke(node.split())
        assert status == 2 and len(said.strip().splitlines()) == 1, said
        assert "modeling_tiny.py" in said and f"set {KEY}: true in params.yaml" in said
        assert ("policy.model" if node == "policy" else "data/policy/0") in said
    for node in ("reward", "score 1"):
        status, said = invoke(node.split())
        assert status == 2 and "set reward.trust_remote_code: true in params.yaml" in said, said
    checks = {c.name: c for c in check_science(AuditedRun(copy.folder), trusted=True)}
    for name in ("rewards", "reference log-probabilities", "losses at step 0"):
        assert checks[name].verdict == "not checked" and "trust_remote_code is false" in checks[name].detail
    assert executed.read_text() == before


# Permission --------------------------------------------------------------------------------------------------------


def test_without_the_parameter_nothing_runs(workspace, brought, marker):
    param("policy.model", str(brought))()
    status, said = invoke(["policy"])
    assert status == 2 and f"set {KEY}: true in params.yaml" in said and "custom code (modeling_tiny.py)" in said
    assert not marker.exists()


def test_a_checkpoint_grants_itself_nothing(workspace, marker, tiny_policy):
    """Code planted in a checkpoint of the graph, with every setting that a checkpoint could hold."""
    shutil.rmtree("data/policy/0")
    folder = with_code(tiny_policy, Path("data/policy/0"), marker)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        raw = json.loads((folder / name).read_text()) | {"trust_remote_code": True}
        (folder / name).write_text(json.dumps(raw))
    for node in (["sample", "1"], ["reference", "1"], ["train", "1"], ["generate", "0", "held_out"]):
        status, said = invoke(node)
        assert status == 2 and "data/policy/0" in said and KEY in said, said
    with pytest.raises(UserError, match=r"runs only where params\.yaml says so"):
        load_model(folder, "float32")
    assert not marker.exists()


def test_code_that_transformers_has_under_the_same_names_needs_no_permission(tiny_policy, tmp_path, marker):
    """As for models that are older than the library's own classes. What is saved names no code any more."""
    native = {"AutoConfig": "modeling_tiny.LlamaConfig", "AutoModelForCausalLM": "modeling_tiny.LlamaForCausalLM"}
    source = with_code(tiny_policy, tmp_path / "old", marker, "llama", **native)
    fetch_initial_policy(PolicyParams(model=str(source)), tmp_path / "made")
    assert not remote_code.references(tmp_path / "made") and not list((tmp_path / "made").glob("*.py"))
    # Under another name it is another model, which the library's class would stand in for without a word.
    other = with_code(tiny_policy, tmp_path / "other", marker, "llama", AutoModelForCausalLM="modeling_tiny.TinyLM")
    with pytest.raises(UserError, match="custom code"):
        fetch_initial_policy(PolicyParams(model=str(other)), tmp_path / "x")
    assert not marker.exists()


def test_the_permission_alone_changes_no_byte_and_re_trains_nothing(tiny_policy, tmp_path):
    for granted in (False, True):
        fetch_initial_policy(PolicyParams(model=str(tiny_policy), trust_remote_code=granted), tmp_path / str(granted))
    names = sorted(p.name for p in tmp_path.joinpath("True").iterdir())
    assert names == sorted(p.name for p in tmp_path.joinpath("False").iterdir())
    for name in names:
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()
    assert remote_code.admitted() == {}
    graph = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    assert [name for name, stage in graph.items() if "policy" in stage.get("do", stage).get("params", [])] == ["policy"]
    assert "trust_remote_code" not in PolicyParams(model="x").model_dump(), "off, no record and no page speaks of it"


# What runs is what lies in the checkpoint --------------------------------------------------------------------------


def test_no_copy_in_a_modules_cache_is_what_runs(workspace, brought, marker, monkeypatch):
    """Planted where transformers would take it: same name, size and time as the real file; and a package of that name
    in the working folder, where the code's imports of its own files would find it."""
    planted, evil = Path("planted").resolve(), modeling(marker, "E")
    digest = dynamic_module_utils._compute_local_source_files_hash(str(brought), str(brought / CODE[0]))
    for home in (planted, Path()):
        package = home / remote_code.MODULES / "brought" / digest
        package.mkdir(parents=True)
        for folder in (package, *package.parents[:2]):
            (folder / "__init__.py").touch()
        for name, content in ((CODE[0], evil), (HELPER, "SCALE = 1.0 \n")):
            (package / name).write_text(content)
            times = (brought / name).stat()
            assert (package / name).stat().st_size == times.st_size
            os.utime(package / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(planted))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    # By itself transformers runs the planted copy: without this the test could not fail.
    AutoModelForCausalLM.from_pretrained(brought, trust_remote_code=True)
    assert marker.read_text() == "E"
    marker.unlink()
    param("policy.model", str(brought))()
    param(KEY, True)()
    assert invoke(["policy"]) == (0, "")
    assert marker.read_text() == "x"
    assert turned(Path("data/policy/0"))


def test_code_that_changes_after_it_was_admitted_does_not_run(brought, marker):
    remote_code.admit(brought, KEY, True)
    (brought / HELPER).write_text("SCALE = 1.0\n")
    with pytest.raises(UserError, match="has changed since the node started"):
        load_model(brought, "float32")
    assert not marker.exists()


def escaping(folder: Path, reference: str) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["auto_map"]["AutoModelForCausalLM"] = reference
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: escaping(f, "owner/name--modeling_tiny.X"), "names 'owner/name--modeling_tiny.X'"),
        (lambda f: escaping(f, "../outside.X"), "expected MODULE.CLASS"),
        (lambda f: escaping(f, f"{f.parent}/outside.X"), "expected MODULE.CLASS"),
        (lambda f: escaping(f, "gone.X"), "needs gone.py, which is not beside its weights"),
        (lambda f: (f / HELPER).unlink(), f"needs {HELPER}"),
        (lambda f: (f / HELPER).write_bytes(b"\xff"), f"{HELPER} is not text"),
        (lambda f: ((f / "custom_generate").mkdir(), (f / remote_code.GENERATE).touch()), "how responses are drawn"),
        (lambda f: (f / CODE[0]).write_text("raise RuntimeError('no such\\nGPU')"), "no such GPU"),
    ],
)
def test_code_from_elsewhere_and_broken_code_is_one_line(workspace, brought, marker, spoil, words):
    brought.parent.joinpath("outside.py").write_text(modeling(marker))
    spoil(brought)
    param("policy.model", str(brought))()
    param(KEY, True)()
    status, said = invoke(["policy"])
    assert status == 2 and words in said and len(said.strip().splitlines()) == 1, said
    assert "params.yaml: policy.model" in said
    assert not marker.exists()


def test_a_hub_models_code_is_that_of_the_pinned_commit(brought, marker, tmp_path, monkeypatch):
    """A hub's cache with two commits of a model, as it is after both were fetched; no network."""
    pinned, newest = "a" * 40, "b" * 40
    home = tmp_path / "hub" / "models--owner--tiny"
    for commit, letter in ((pinned, "x"), (newest, "E")):
        shutil.copytree(brought, home / "snapshots" / commit)
        (home / "snapshots" / commit / CODE[0]).write_text(modeling(marker, letter))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(newest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="custom code"):
        fetch_initial_policy(PolicyParams(model="owner/tiny", revision=pinned), tmp_path / "made")
    assert not marker.exists()
    params = PolicyParams(model="owner/tiny", revision=pinned, trust_remote_code=True)
    fetch_initial_policy(params, tmp_path / "made")
    assert marker.read_text() == "x"
    assert (tmp_path / "made" / CODE[0]).read_text() == modeling(marker)
    remote_code.begin()
    assert turned(tmp_path / "made")


# Others who load checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("granted", [False, True])
def test_vllm_is_told(brought, tiny_policy, monkeypatch, granted):
    """What its constructor gets; vLLM itself is not asked here."""
    told: dict = {}
    vllm, platforms = types.ModuleType("vllm"), types.ModuleType("vllm.platforms")
    vllm.LLM, vllm.__version__ = lambda **settings: told.update(settings), "0"
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    folder = brought if granted else tiny_policy
    if granted:
        remote_code.admit(brought, KEY, True)
    engine = build_engine(EngineParams(name="vllm"), str(folder), 0)
    assert told.get("trust_remote_code", False) is granted
    assert engine.facts().get("trust_remote_code", False) is granted


def test_a_head_is_put_on_a_policy_only_by_its_own_code(workspace, brought, marker):
    """Else the head would stand on the library's class, which is another model."""
    pairs = {"data": {"source": "sums", "sums": {"digits": 1}, "examples": 20}, "held_out": 0.3}
    training = pairs | {"learning_rate": 1e-3, "max_steps": 1, "pairs_per_step": 4}
    changes = {"reward": {"start": "data/policy/0", "max_length": 64, "train": training}, KEY: True}
    params(changes | {"policy.model": str(brought)})()
    assert invoke(["policy"]) == (0, "")
    subprocess.run(["git", "init", "-q"], check=True)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    status, said = invoke(["reward"])
    assert status == 0, said
    assert json.loads(Path("data/reward.manifest.json").read_text())["notes"]["remote_code"].keys() == {KEY}
    raw = json.loads(Path("data/policy/0/config.json").read_text())
    del raw["auto_map"]["AutoModelForSequenceClassification"]
    Path("data/policy/0/config.json").write_text(json.dumps(raw))
    status, said = invoke(["reward"])
    assert status == 2 and "no AutoModelForSequenceClassification" in said


def test_a_part_that_states_no_permission_is_an_error_and_no_question(tmp_path, marker):
    """The library's head builds its body by AutoModel and states nothing: left alone, transformers would ask."""
    auto_map = CLASSES | {"AutoModel": "modeling_tiny.TinyModel"}
    folder = with_code(decoder(tmp_path / "llama"), tmp_path / "reward", marker, **auto_map)
    (folder / CODE[0]).write_text(modeling(marker, register="# "))
    remote_code.admit(folder, "reward.trust_remote_code", True)
    with pytest.raises(UserError, match=r"no usable reward model .*requires you to execute custom code"):
        load_classifier(folder, "float32")


def test_a_plan_runs_none_and_says_what_a_run_would_refuse(workspace, brought, marker):
    param("policy.model", str(brought))()
    refused = build_plan(load_params(), Assumptions()).failed
    assert any(f"set {KEY}: true" in line for line in refused)
    param(KEY, True)()
    plan = build_plan(found := load_params(), Assumptions(longest_prompt_tokens=64))
    assert plan.failed == []
    (need,) = [n for n in needs_of(found, plan) if n.key == "policy.model"]
    assert need.source == "folder, present; its own code may run"
    assert not marker.exists()
