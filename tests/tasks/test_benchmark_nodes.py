"""items → generate → evaluate with the tiny policy: what is kept, and a judge on loopback that is asked once."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

import tasks.evaluate
import tasks.generate
import tasks.items
from larpo import tables
from larpo.audit.science.expected import output_rows
from larpo.config.evaluation import GenerateParams
from larpo.errors import UserError
from tests.chat_server import ChatServer
from tests.conftest import ROOT
from tests.tasks.conftest import change

QUESTIONS = ROOT / "data/samples/questions"


@pytest.fixture
def kept(workspace, monkeypatch) -> Path:
    """Where judgements are kept."""
    monkeypatch.setenv("LARPO_JUDGEMENTS", str(workspace / "kept"))
    return workspace / "kept"


def describe(benchmarks: str, judges: str = "{}") -> None:
    change(benchmarks=yaml.safe_load(benchmarks), judges=yaml.safe_load(judges))


def run(name: str) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    tasks.items.main(name)
    tasks.generate.main("0", name)
    tasks.evaluate.main("0", name)
    outputs = tables.read("outputs", f"data/generate/0-{name}.parquet")
    evaluations = tables.read("evaluations", f"data/evaluate/0-{name}.parquet")
    return outputs, evaluations, json.loads(Path(f"data/evaluate/0-{name}.json").read_text())


def test_samples_at_two_temperatures_and_revisions(kept):
    """6 problems: per problem a greedy answer, two revisions; 4 of them 3 samples at each of two temperatures."""
    rows = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    Path("q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = "g: {benchmark: gsm8k, data: ./q.jsonl, generate: {samples: 3, sampled_items: 4, temperatures: [0.5, 1.5], "
    entry += "refinements: 2, max_new_tokens: 6}"
    describe(entry + "}")
    outputs, evaluations, metrics = run("g")
    assert len(outputs) == 6 * 3 + 4 * 2 * 3
    assert outputs.groupby(["temperature", "turn"]).size().to_dict() == {
        (0.0, 0): 6,
        (0.0, 1): 6,
        (0.0, 2): 6,
        (0.5, 0): 12,
        (1.5, 0): 12,
    }
    asked = outputs["prompt_token_ids"].map(len)
    assert asked[outputs["turn"] == 1].min() > asked[outputs["turn"] == 0].max(), "a revision sees the answer"
    assert evaluations[["prompt_id", "temperature", "sample", "turn", "text"]].equals(
        outputs[["prompt_id", "temperature", "sample", "turn", "text"]]
    )
    assert list(metrics["temperatures"]) == ["0.5", "1.5"]
    assert list(metrics["pass"]) == ["1", "2", "3"]
    assert set(metrics["scores"]) == {"flexible", "strict", "answer"}
    assert [s["n"] for s in metrics["strategies"] if s["strategy"] == "refinement"] == [2, 3]
    # Another filter reads the same outputs again.
    before = Path("data/generate/0-g.parquet").read_bytes()
    describe(entry + ", options: {filter: strict}}")
    tasks.items.main("g")
    tasks.evaluate.main("0", "g")
    assert Path("data/generate/0-g.parquet").read_bytes() == before


def test_one_sampled_output_in_place_of_the_greedy_one(kept):
    """MixEval at a temperature: one row per item, named as sampled in table, metrics and audit; GSM8K has none."""
    entry = "{benchmark: %s, data: %s, generate: {temperature: 1.5, max_new_tokens: 6%s}}"
    describe(f"m: {entry % ('mixeval', QUESTIONS, '')}")
    outputs, _, metrics = run("m")
    assert (outputs["temperature"] == 1.5).all() and (outputs["sample"] == -1).all()
    assert outputs["prompt_id"].is_unique and metrics["temperature"] == 1.5
    again = output_rows(outputs["prompt_id"].tolist(), GenerateParams(temperature=1.5, max_new_tokens=6))
    pd.testing.assert_frame_equal(outputs[list(again.columns)], again)
    describe(f"m: {entry.replace('temperature: 1.5, ', '') % ('mixeval', QUESTIONS, '')}")
    greedy, _, metrics = run("m")
    assert metrics["temperature"] == 0.0 and (greedy["text"] != outputs["text"]).any()
    for kind, more, words in (("gsm8k", "", "calls its first output greedy"), ("mixeval", ", samples: 2", "samples")):
        written = f"m: {entry % (kind, QUESTIONS, more)}"
        with pytest.raises(UserError, match=f"generate.*{words}"):
            described(written)


def described(benchmarks: str) -> None:
    describe(benchmarks)
    tasks.items.main("m")


def test_a_judged_benchmark_pays_once(kept):
    """MixEval's format with a model as the parser: 28 questions, 28 requests; evaluated again: none, same bytes."""
    with ChatServer(lambda body: "[[0.5]]" if "Reference" in body["messages"][-1]["content"] else "[[A]]") as server:
        data = ROOT / "data/samples/questions"
        entry = f"  q: {{benchmark: mixeval, data: {data}, judge: j, generate: {{max_new_tokens: 4}}, "
        describe(entry + "options: {parser: model}}", f"{{j: {{model: judge, base_url: '{server.url}'}}}}")
        _, evaluations, metrics = run("q")
        assert len(server.bodies) == 28
        first = Path("data/evaluate/0-q.parquet").read_bytes()
        tasks.evaluate.main("0", "q")
        assert len(server.bodies) == 28
    # Without the server too: recomputing needs no network.
    tasks.evaluate.main("0", "q")
    assert Path("data/evaluate/0-q.parquet").read_bytes() == first
    assert metrics["scores"]["free_form"]["value"] == 0.5
    assert evaluations["judgement"].map(json.loads).map(lambda r: r["model"]).eq("judge").all()
    assert len(list(kept.glob("judge-*.jsonl"))) == 1


def test_a_missing_key_is_told_before_anything_is_generated(kept, monkeypatch):
    """With the model parser, named or upstream's by default; the rules need no key."""
    monkeypatch.delenv("SOME_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judges = "{j: {model: judge, base_url: 'https://judge.invalid/v1', api_key_env: SOME_KEY}}"
    entry = f"  q: {{benchmark: mixeval, data: {ROOT / 'data/samples/questions'}, generate: {{max_new_tokens: 2}}, "
    asks = "options: {parser: model}}"
    for options, variable in (("judge: j, " + asks, "SOME_KEY"), (asks, "OPENAI_API_KEY")):
        describe(entry + options, judges)
        tasks.items.main("q")
        with pytest.raises(UserError, match=rf"judges\.\S+\.api_key_env: the environment variable {variable}") as told:
            tasks.generate.main("0", "q")
        assert "\n" not in str(told.value)
        assert not Path("data/generate").exists() and not list(Path("scratch").glob("generate*"))
    describe(entry + "judge: j}", judges)
    assert len(run("q")[1]) == 28
