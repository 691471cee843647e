"""Nodes reward, score and best_of_n with real (tiny) reward models: layouts, training, resuming, whole prompts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tasks.best_of_n
import tasks.evaluate
import tasks.frame.parts
import tasks.frame.scoring
import tasks.items
import tasks.reward
import tasks.score
from larpo import tables
from larpo.errors import UserError
from larpo.load import load_params
from tests.reward_models import decoder, encoder, pairrm
from tests.tasks.conftest import change, record

MESSAGES = [{"role": "user", "content": "1 + 1 ="}]


def files(folder: str) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_rules_alone_make_a_folder_that_says_so(workspace):
    tasks.reward.main()
    assert {k: json.loads(v) for k, v in files("data/reward").items()} == {"reward.json": {"kind": "rules"}}


@pytest.mark.parametrize(("make", "kind"), [(decoder, "sequence_classification"), (pairrm, "pairrm")])
def test_a_checkpoint_is_kept_as_safetensors_with_its_identity(workspace, make, kind):
    make(workspace / "model")
    change(reward={"model": "./model", "kind": kind, "max_length": 128})
    tasks.reward.main()
    made = files("data/reward")
    assert {"reward.json", "config.json", "model.safetensors", "tokenizer.json"} <= made.keys()
    assert not [name for name in made if name.endswith((".bin", ".pt", ".pkl"))]
    identity = json.loads(made["reward.json"])
    assert identity["kind"] == kind and identity["max_length"] == 128 and identity["weights"]
    assert record("data/reward.manifest.json")["notes"]["reward"] == identity


def test_a_template_without_system_messages_is_refused_before_its_weights(workspace):
    decoder(workspace / "model")
    refuses = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (workspace / "model/chat_template.jinja").write_text(refuses + "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    (workspace / "model/model.safetensors").write_bytes(b"never read")
    prompts = load_params().prompts.model_dump() | {"system": "Be brief."}
    change(prompts=prompts, reward={"model": "./model", "max_length": 128})
    with pytest.raises(UserError, match=r"reward.model: './model': the chat template refuses a conversation of system"):
        tasks.reward.main()


def pairs(n: int = 60) -> None:
    """The chosen response says yes, the rejected no; and a row that states nothing."""
    rows = [{"prompt": f"is {i} a number?", "chosen": f"yes {i % 7}", "rejected": f"no {i % 5}"} for i in range(n)]
    rows.append({"prompt": "same", "chosen": "a", "rejected": "a"})
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


TRAIN = {
    "data": {"data": "pairs.jsonl"},
    "held_out": 0.3,
    "learning_rate": 3e-3,
    "epochs": 3,
    "pairs_per_step": 8,
    "pairs_per_device_batch": 4,
    "save_steps": 2,
}


@pytest.mark.parametrize("make", [decoder, encoder])
def test_training_learns_what_the_pairs_say_and_counts_what_it_drops(workspace, make):
    pairs()
    make(workspace / "model")
    change(reward={"model": "./model", "max_length": 64, "train": TRAIN, "checks": {"same": {"data": "pairs.jsonl"}}})
    tasks.reward.main()
    metrics = record("data/reward/metrics.json")
    held_out = metrics["held_out"]
    assert held_out["accuracy"]["value"] > 0.9, "yes is better than no"
    assert held_out["accuracy"]["low"] < held_out["accuracy"]["value"]
    assert metrics["dropped"] == {"equal": 1} and metrics["checks"]["same"]["pairs"] == 60
    trained = record("data/reward/reward.json")["trained"]
    assert trained["train"] + trained["held_out"] == 60 and held_out["pairs"] == trained["held_out"]
    assert not [name for name in files("data/reward") if name.endswith(".bin")]
    # Curves of the training, and no clock in them: same inputs, same bytes.
    assert "training/plots/metrics/loss.tsv" in files("data/reward")


def test_a_head_on_a_policy_of_the_run_learns_sums_and_scores(workspace):
    """One-digit sums with a carry, 1 + 2 + … + 9 = 45 of them, of which it sees 70 %. The policy is an input."""
    from larpo.config.policy import ScratchParams
    from larpo.models.blank import scratch_policy

    tiny = ScratchParams(characters="0123456789+=", hidden_size=32, layers=2, heads=2, max_length=24)
    shutil.rmtree("data/policy/0")
    for part in scratch_policy(tiny):
        part.save_pretrained(workspace / "data/policy/0")
    pairs = {"source": "sums", "sums": {"digits": 1, "errors": ["careless"]}}
    settings = {"data": pairs, "held_out": 0.3, "learning_rate": 3e-3, "epochs": 15, "pairs_per_step": 9}
    trained = settings | {"pairs_per_device_batch": 9, "save_steps": 100}
    start = {"start": "data/policy/0", "max_length": 24, "train": trained, "checks": {"again": pairs}}
    change(reward=start, score={"reward": "sequence_classification"}, prompts={"source": "sums", "per_iteration": 4})
    rule = {"items": 8, "options": {"rule": "final_number"}, "generate": {"max_new_tokens": 4}}
    change(benchmarks={"held_out": rule})
    tasks.reward.main()
    metrics = record("data/reward/metrics.json")
    assert metrics["held_out"]["accuracy"]["value"] > 0.9
    check = metrics["checks"]["again"]
    assert check["pairs"] == metrics["held_out"]["pairs"], "what was trained on is no check"
    assert check["dropped"] == {"not_held_out": 45 - check["pairs"]}
    manifest = record("data/reward.manifest.json")
    assert list(manifest["inputs"]) == ["data/inputs/reward.json", "data/policy/0"]
    assert manifest["notes"]["reward"]["model"] == "data/policy/0" and manifest["notes"]["reward"]["origin"] == "policy"
    sampled()
    assert scored()["reward"].nunique() > 10


def test_killed_in_training_it_ends_with_the_same_bytes(workspace, monkeypatch):
    from larpo.training.pair_trainer import BradleyTerryTrainer

    pairs()
    encoder(workspace / "model")
    change(reward={"model": "./model", "max_length": 64, "train": TRAIN | {"epochs": 1}})
    tasks.reward.main()
    undisturbed = files("data/reward")
    shutil.rmtree("data")
    step = BradleyTerryTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(BradleyTerryTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        tasks.reward.main()
    assert not Path("data/reward").exists()
    monkeypatch.setattr(BradleyTerryTrainer, "training_step", step)
    tasks.reward.main()
    assert record("data/reward.manifest.json")["notes"]["reward"]["trained"]["steps"] > 3
    again = files("data/reward")
    assert again.keys() == undisturbed.keys()
    assert [k for k in again if again[k] != undisturbed[k]] == []


def test_seeds_of_the_run_share_the_reward(workspace):
    """The node depends on the section `reward` alone."""
    pairs()
    encoder(workspace / "model")
    change(reward={"model": "./model", "max_length": 64, "train": TRAIN | {"max_steps": 2}})
    tasks.reward.main()
    first = files("data/reward")
    change(seed=5)
    tasks.reward.main()
    assert files("data/reward") == first
    assert record("data/reward.manifest.json")["params"].keys() == {"reward"}


def sampled(prompts: int = 5, k: int = 4) -> None:
    """Responses in an order that mixes the prompts."""
    ids = [f"p{i}" for i in range(prompts)]
    messages = [[{"role": "user", "content": f"{i} + 1 ="}] for i in range(prompts)]
    frame = {"prompt_id": ids, "source": "s", "messages": messages, "answer": [str(i + 1) for i in range(prompts)]}
    tables.write(pd.DataFrame(frame).assign(solution=None), "prompts", "data/prompts/1.parquet")
    rows = [(p, f"r{p}-{j}", str((p + j) % 7)) for j in range(k) for p in range(prompts)]
    out = pd.DataFrame(rows, columns=["prompt_id", "response_id", "text"]).assign(
        prompt_id=lambda f: "p" + f["prompt_id"].astype(str),
        origin="policy",
        iteration=1,
        temperature=1.0,
        seed=1,
        prompt_token_ids=[[5, 6]] * len(rows),
        token_ids=[[7] * (1 + i % 3) for i in range(len(rows))],
        finish_reason=["length" if i == 1 else "stop" for i in range(len(rows))],
    )
    tables.write(out, "responses", "data/sample/1.parquet")


def scored() -> pd.DataFrame:
    tasks.score.main("1")
    return tables.read("rewards", "data/score/1.parquet")


@pytest.mark.parametrize(("make", "kind"), [(decoder, "sequence_classification"), (pairrm, "pairrm")])
def test_parts_never_change_a_score_and_never_split_a_prompt(workspace, make, kind, monkeypatch):
    sampled()
    make(workspace / "model")
    options = {"source_max_length": 60} if kind == "pairrm" else {}
    change(reward={"model": "./model", "kind": kind, "max_length": 128}, score={"reward": kind, "options": options})
    change(
        benchmarks={"held_out": {"items": 8, "options": {"rule": "final_number"}, "generate": {"max_new_tokens": 4}}}
    )
    tasks.reward.main()
    whole = scored()
    assert whole["correct"].isna().all() and whole["reward"].nunique() > 10
    for part in (1, 5, 9):
        monkeypatch.setattr(tasks.frame.scoring, "MODEL_PART", part)
        # One thread, the same sequences, other neighbours in the batch: floating point may differ in its last digits.
        np.testing.assert_allclose(scored()["reward"], whole["reward"], atol=1e-5)
    if kind == "pairrm":
        responses = tables.read("responses", "data/sample/1.parquet")
        sums = whole.groupby(responses["prompt_id"])["reward"].sum()
        assert sums.to_numpy() == pytest.approx(np.zeros(5), abs=1e-5), "Σ_i Σ_j (C[i, j] − C[j, i]) = 0 per prompt"


def test_a_killed_score_resumes_and_keeps_its_counts(workspace, monkeypatch):
    sampled()
    decoder(workspace / "model")
    change(
        reward={"model": "./model", "max_length": 16},
        score={"reward": "sequence_classification"},
        benchmarks={"held_out": {"items": 8, "options": {"rule": "final_number"}, "generate": {"max_new_tokens": 4}}},
    )
    frame = tables.read("prompts", "data/prompts/1.parquet")
    frame["messages"] = [[{"role": "user", "content": "a" * 30}]] * len(frame)
    tables.write(frame, "prompts", "data/prompts/1.parquet")
    tasks.reward.main()
    monkeypatch.setattr(tasks.frame.scoring, "MODEL_PART", 4)
    whole, facts = scored(), record("data/score/1.manifest.json")["notes"]["reward"]
    assert facts["prompts_cut"] == 20 and facts["weights"]
    shutil.rmtree("data/score")
    write, calls = tasks.frame.parts.write_part, []

    def dies(part, path):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path)
        write(part, path)

    monkeypatch.setattr(tasks.frame.parts, "write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        tasks.score.main("1")
    monkeypatch.setattr(tasks.frame.parts, "write_part", write)
    pd.testing.assert_frame_equal(scored(), whole)
    assert record("data/score/1.manifest.json")["notes"]["reward"] == facts


def test_penalties_and_cut_off_answers(workspace):
    """Row 1 (prompt p1, text 1, answer 2) was cut off: closeness gives it the floor, −4, not −log10(1 + 1).
    Row 0: text 0, answer 1: −log10 2. Penalties: 0.5 for the cut, 0.1 per token (1, 2, 3, 1, …)."""
    sampled()
    change(score={"reward": "closeness", "truncation_penalty": 0.5, "length_penalty": 0.1})
    tasks.reward.main()
    found = scored()
    assert found["reward"].tolist()[:2] == pytest.approx([-np.log10(2) - 0.1, -4 - 0.5 - 0.2])
    assert found["correct"].tolist()[:6] == [False] * 5 + [True]


def test_held_out_needs_a_rule_and_loads_no_reward_model(workspace):
    change(reward={"model": "./nowhere"}, score={"reward": "sequence_classification"})
    with pytest.raises(
        UserError, match=r"benchmarks\.held_out\.options\.rule: sequence_classification is no rule"
    ) as e:
        load_params()
    assert "\n" not in str(e.value)
    held_out = {"items": 4, "options": {"rule": "final_number"}, "generate": {"max_new_tokens": 4}}
    change(benchmarks={"held_out": held_out})
    Path("nowhere").mkdir()  # it holds no model, and nobody looks
    tasks.items.main("held_out")
    assert len(tables.read("items", "data/items/held_out.parquet")) == 4


def benchmark_run(samples: int = 4, items: int = 6) -> None:
    """Items, outputs and evaluations of policy 0 on held_out, as their nodes leave them."""
    change(
        benchmarks={
            "held_out": {
                "items": items,
                "options": {"rule": "final_number"},
                "generate": {"samples": samples, "temperatures": [1.0], "max_new_tokens": 9},
            }
        }
    )
    tasks.items.main("held_out")
    asked = tables.read("items", "data/items/held_out.parquet")[["prompt_id", "answer"]].to_numpy()
    rows = [(p, s, a if (i + s) % 3 == 0 else str(s)) for i, (p, a) in enumerate(asked) for s in range(-1, samples)]
    out = pd.DataFrame(rows, columns=["prompt_id", "sample", "text"]).assign(
        temperature=lambda f: (f["sample"] >= 0).astype(float),
        turn=0,
        n_tokens=2,
        finish_reason="stop",
        prompt_token_ids=[[5]] * len(rows),
        token_ids=[[7, 1]] * len(rows),
    )
    tables.write(out[tables.SCHEMAS["outputs"].names], "outputs", "data/generate/0-held_out.parquet")
    tasks.evaluate.main("0", "held_out")


def test_best_of_n_under_a_model_against_the_rule(workspace):
    decoder(workspace / "model")
    change(reward={"model": "./model", "max_length": 128}, score={"reward": "sequence_classification"})
    change(best_of_n={"x": {"policy": "0", "benchmark": "held_out", "ns": [1, 2, 4]}})
    benchmark_run()
    tasks.reward.main()
    tasks.best_of_n.main("x")
    found = record("data/evaluate/best_of_n-x.json")
    frame = tables.read("scored", "data/evaluate/best_of_n-x.parquet")
    assert len(frame) == 24 and found["reward"] == "sequence_classification" and found["items"] == 6
    best = frame.loc[frame.groupby("prompt_id")["reward"].idxmax()]
    assert found["points"][-1]["score"]["value"] == pytest.approx(best["score"].mean())
    assert found["points"][-1]["reward"]["value"] == pytest.approx(best["reward"].mean())
    assert found["points"][0]["score"]["value"] == pytest.approx(frame["score"].mean())


def test_best_of_n_by_the_rule_itself_is_pass_at_n(workspace):
    """Without penalties the rule picks a right answer where there is one."""
    change(score={"reward": "final_number"}, best_of_n={"x": {"policy": "0", "benchmark": "held_out", "ns": [1, 4]}})
    benchmark_run()
    tasks.reward.main()
    tasks.best_of_n.main("x")
    found = record("data/evaluate/best_of_n-x.json")
    passes = record("data/evaluate/0-held_out.json")["pass"]
    for point in found["points"]:
        assert point["score"]["value"] == pytest.approx(passes[str(point["n"])]["value"])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"policy": "1", "benchmark": "held_out", "ns": [1]}, "best_of_n.x.policy: '1' is not in evaluate.policies"),
        ({"policy": "0", "benchmark": "heldout", "ns": [1]}, "best_of_n.x.benchmark: 'heldout' does not exist"),
        ({"policy": "0", "benchmark": "held_out", "ns": [8]}, "best of 8 needs as many samples"),
        ({"policy": "0", "benchmark": "held_out", "ns": []}, "best_of_n.x.ns"),
    ],
)
def test_wrong_best_of_n_settings(workspace, entry, words):
    change(best_of_n={"x": entry})
    with pytest.raises(UserError, match=words):
        load_params()
