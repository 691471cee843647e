"""Code that a checkpoint brings: never run unless a parameter says so, and then from the checkpoint alone and recorded.

The checkpoint is real: two Python files beside its weights, one of which writes a file whenever it is imported.
"""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, dynamic_module_utils

from larpo.config.policy import PolicyParams
from larpo.config.sections import EngineParams
from larpo.engines import build_engine
from larpo.errors import UserError
from larpo.load import load_params
from larpo.models import remote_code
from larpo.models.initial import fetch_initial_policy, initial_checkpoint
from larpo.models.load import load_model
from larpo.plan import Assumptions, build_plan
from larpo.plan.needs import needs_of
from larpo.rewards.checkpoint import load_classifier
from tests.bad_input.harness import invoke, param, params
from tests.remote_code import CLASSES, CODE, HELPER, KEY, modeling, turned, with_code
from tests.reward_models import decoder

pytestmark = pytest.mark.usefixtures("nobody_is_asked")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def brought(tiny_policy: Path, tmp_path: Path, marker: Path) -> Path:
    """A checkpoint with code of its own, as policy.model of the working folder's params.yaml would name it."""
    return with_code(tiny_policy, tmp_path / "brought", marker)


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
    assert remote_code.record([initial_checkpoint(PolicyParams(model=str(tiny_policy), trust_remote_code=True))]) == {}
    graph = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    assert [name for name, stage in graph.items() if "policy" in stage.get("do", stage).get("params", [])] == [
        "inputs",
        "policy",
    ]
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
    for name in [name for name in sys.modules if name.partition(".")[0] == remote_code.MODULES]:
        monkeypatch.delitem(sys.modules, name)  # what an earlier test imported
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
    checkpoint = remote_code.admit(brought, KEY, True)
    (brought / HELPER).write_text("SCALE = 1.0\n")
    with pytest.raises(UserError, match="has changed since the node started"):
        load_model(checkpoint, "float32")
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
    checkpoint = remote_code.admit(folder, KEY, granted)
    engine = build_engine(EngineParams(name="vllm"), checkpoint, 0)
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
    checkpoint = remote_code.admit(folder, "reward.trust_remote_code", True)
    with pytest.raises(UserError, match=r"no usable checkpoint .*requires you to execute custom code"):
        load_classifier(checkpoint, "float32")


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
