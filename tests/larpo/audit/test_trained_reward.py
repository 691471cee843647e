"""A reward model that a run trained: honest it holds, and what was forged of it is named, whatever the hashes say."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from larpo.audit.open import AuditedRun
from larpo.audit.science.check import ACCURACY, TRAINED, check_numbers
from larpo.rewards.checkpoint import identity_of
from tests.conftest import Project
from tests.larpo.audit.forgery import Edit, edit_json, text, tree
from tests.reward_models import encoder

REWARD, IDENTITY, METRICS = "data/reward", "data/reward/reward.json", "data/reward/metrics.json"
MANIFEST = "data/reward.manifest.json"
STEPS = {"learning_rate": 3.0e-3, "epochs": 2, "pairs_per_step": 8, "pairs_per_device_batch": 4, "held_out": 0.3}
STARTS = {
    "a policy's head": {
        "start": "data/policy/0",
        "train": STEPS | {"data": {"source": "sums", "sums": {"digits": 1}}},
        "checks": {"file": {"data": "pairs.jsonl"}},
    },
    "a classifier": {
        "start": "larpo/rewards/rules.py",
        "model": "./model",
        "train": STEPS | {"data": {"data": "pairs.jsonl"}},
    },
}


@pytest.fixture(scope="module", params=STARTS)
def honest(request, tmp_path_factory, tiny_policy, warm_nodes) -> Project:
    """The nodes up to `reward`, run by DVC."""
    project = Project(tmp_path_factory.mktemp("trained") / "project", tiny_policy)
    project.variables = warm_nodes
    encoder(project.folder / "model")
    rows = [{"prompt": f"{i} + 1 =", "chosen": f"{i + 1}", "rejected": f"{i % 5} ="} for i in range(60)]
    (project.folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    params = project.folder / "params.yaml"
    raw = yaml.safe_load(params.read_text()) | {"reward": {"max_length": 64} | STARTS[request.param]}
    params.write_text(yaml.safe_dump(raw, sort_keys=False))
    project.dvc("repro", "reward")
    return project


@pytest.fixture
def copy(honest, tmp_path) -> Project:
    return honest.copy(tmp_path / "project")


def check(project: Project, name: str):
    return check_numbers(AuditedRun(project.folder), name)


def test_an_honest_one_holds(honest):
    for name in (TRAINED, ACCURACY):
        found = check(honest, name)
        assert found.verdict == "holds" and found.checked >= 3 and not found.behind, found


def weigh(folder: Path, share: float) -> str:
    """Move the head by so many learning rates, and let reward.json and the manifest tell the new hash."""
    weights = load_file(folder / REWARD / "model.safetensors")
    name = next(n for n in weights if n in ("score.weight", "classifier.weight"))
    weights[name] = weights[name] + share * STEPS["learning_rate"]
    save_file(weights, folder / REWARD / "model.safetensors", metadata={"format": "pt"})
    params, recorded = AuditedRun(folder).params.reward, json.loads((folder / IDENTITY).read_text())
    digest = identity_of(folder / REWARD, params, type("", (), {"chat_template": None}))["weights"]
    assert digest != recorded["weights"]
    edit_json(folder / IDENTITY, lambda r: r.update(weights=digest))
    edit_json(folder / MANIFEST, lambda m: m["notes"]["reward"].update(weights=digest))
    return name


def test_a_head_beyond_reach(copy):
    weigh(copy.folder, 0.5)
    assert check(copy, TRAINED).verdict == "holds", "within it only an execution tells"
    name = weigh(copy.folder, 500)
    found = check(copy, TRAINED)
    assert found.verdict == "fails" and len(found.failures) == 1, found
    line = found.failures[0]
    assert line.startswith(f"{REWARD}: tensor {name}, index [0, ") and " moved by 1.5" in line and "reach of" in line
    # Another library may make another head of the seed: then nobody can tell, and a claimed version is no proof.
    edit_json(copy.folder / MANIFEST, lambda m: m["packages"].update(transformers="4.0"))
    found = check(copy, TRAINED)
    if name == "score.weight":
        assert found.verdict == "holds" and "its manifest claims transformers 4.0, here is " in found.behind[0], found
    else:
        assert found.verdict == "fails", "the head that it started from was made by nobody's seed"


def claimed(metrics: dict) -> None:
    metrics["held_out"]["accuracy"]["value"] = 0.99


FORGED = {
    "an accuracy": (tree(METRICS, claimed), ACCURACY, f"{METRICS}: held_out: accuracy.value is 0.99"),
    "an accuracy in the record": (
        tree(MANIFEST, lambda m: claimed(m["notes"])),
        ACCURACY,
        f"{MANIFEST}: notes: held_out.accuracy.value is 0.99",
    ),
    "pairs less": (
        tree(IDENTITY, lambda r: r["trained"].update(held_out=1)),
        ACCURACY,
        f"{IDENTITY}: trained: held_out is 1",
    ),
    "more steps": (
        tree(IDENTITY, lambda r: r["trained"].update(steps=900)),
        TRAINED,
        f"{IDENTITY}: trained: 900 steps",
    ),
    "a length": (tree(IDENTITY, lambda r: r.update(max_length=32)), TRAINED, f"{IDENTITY}: max_length is 32"),
    "a tokenizer": (
        text(f"{REWARD}/tokenizer.json", '"7"', '"q7"'),
        TRAINED,
        f"{REWARD}/tokenizer.json: is not that of ",
    ),
    "a template": (
        Edit(f"{REWARD}/chat_template.jinja", lambda path: path.write_text("{{ messages }}")),
        TRAINED,
        f"{REWARD}/chat_template.jinja: ",
    ),
    "a configuration": (
        tree(f"{REWARD}/config.json", lambda c: c.update(hidden_act="relu")),
        TRAINED,
        f"{REWARD}/config.json: hidden_act is 'relu'",
    ),
    "a file more": (Edit(f"{REWARD}/more.json", Path.touch), TRAINED, f"{REWARD}/more.json: there, unlike in "),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forgery_is_named(copy, case):
    change, name, words = FORGED[case]
    change(copy.folder)
    found = check(copy, name)
    assert found.verdict == "fails" and any(line.startswith(words) for line in found.failures), found


def test_what_is_not_here_is_not_checked(copy):
    (copy.folder / "pairs.jsonl").unlink()
    found = check(copy, ACCURACY)
    assert found.behind == ("pairs.jsonl is not here, and nothing is fetched",) and not found.failures, found
    params = copy.folder / "params.yaml"
    if "./model" in params.read_text():
        params.write_text(params.read_text().replace("./model", "owner/model"))
        found = check(copy, TRAINED)
        assert found.verdict == "not checked" and "owner/model" in found.detail, found


def test_another_library_may_write_a_configuration_otherwise(copy):
    edit_json(copy.folder / f"{REWARD}/config.json", lambda config: config.update(hidden_act="relu"))
    edit_json(copy.folder / MANIFEST, lambda manifest: manifest["packages"].update(transformers="4.0"))
    found = check(copy, TRAINED)
    assert found.verdict == "holds" and "its manifest claims transformers 4.0, here is " in found.behind[0], found
