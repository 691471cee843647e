"""Prompts that leave a model no room are refused before it is loaded; those that a benchmark asks are left out."""

import json
from pathlib import Path

import pytest
import yaml

import tasks.generate
import tasks.items
import tasks.prompts
import tasks.sample
from larpo import tables
from larpo.errors import UserError
from tests.tasks.conftest import change, record


def section(name: str) -> dict:
    return yaml.safe_load(Path("params.yaml").read_text())[name]


@pytest.fixture
def no_weights(workspace, monkeypatch):
    def load(*_):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("tasks.frame.generator.build_engine", load)
    return workspace


def test_prompts_longer_than_the_context(no_weights):
    tasks.prompts.main("1")
    change(sample={"responses": 6, "max_new_tokens": 500})
    with pytest.raises(UserError, match=r"sample@1: 12 of 12 prompts with max_new_tokens=500 do not fit the 512 pos"):
        tasks.sample.main("1")
    tasks.items.main("held_out")
    held_out = {"items": 8, "generate": {"max_new_tokens": 512}}
    change(benchmarks={"held_out": held_out})
    with pytest.raises(UserError, match=r"generate@0-held_out: 8 of 8 items with max_new_tokens=512 do not fit"):
        tasks.generate.main("0", "held_out")


@pytest.mark.parametrize("inside", [True, False])
def test_prompts_that_outgrow_the_first_rotary_angles(no_weights, inside):
    """Of Phi-3: the embedded engine's cache would keep keys turned by the old ones, and rows beside would turn too."""
    tasks.prompts.main("1")
    config, first = Path("data/policy/0/config.json"), {"original_max_position_embeddings": 8}
    rope = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0], **(first if inside else {})}
    config.write_text(json.dumps({**record(str(config)), "rope_scaling": rope, **({} if inside else first)}))
    with pytest.raises(
        UserError, match=r"fit the 8 positions of data/policy/0, beyond which its rotary angles change;"
    ):
        tasks.sample.main("1")
    change(engine={"name": "vllm"})
    with pytest.raises(AssertionError, match="weights are loaded"):
        tasks.sample.main("1")


def test_questions_of_a_benchmark_are_dropped_and_counted(workspace):
    asked = [{"question": f"Ann has {i} pears. How many?", "answer": f"#### {i}"} for i in range(4)]
    mine = [{"prompt": f"Q: ANN has {i} pears.  How many? A:", "answer": i} for i in range(40)]
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    prompts = {"source": "dataset", "dataset": "mine.jsonl", "answer_field": "answer", "held_out": 0}
    gsm8k = {"benchmark": "gsm8k", "data": "items.jsonl", "generate": {"max_new_tokens": 8}}
    change(prompts=prompts | {"per_iteration": 36}, benchmarks={"gsm8k": gsm8k})
    tasks.prompts.main("1")
    rows = record("data/prompts/1.manifest.json")["rows"]
    assert rows["out"] == 36 and list(rows["dropped"]) == ["question of gsm8k"]
    assert rows["in"] == 36 + rows["dropped"]["question of gsm8k"]
    assert {int(a) for a in tables.read("prompts", "data/prompts/1.parquet")["answer"]} == set(range(4, 40))
    change(prompts=section("prompts") | {"per_iteration": 37})
    with pytest.raises(
        UserError,
        match=r"mine\.jsonl: 36 different .* and 4 more that hold a .*, 37 asked for by prompts\.per_iteration",
    ):
        tasks.prompts.main("1")


def test_a_prompt_with_two_answers_is_told(workspace, capsys):
    """Whichever of them comes first counts; where a row repeats its answer too there is nothing to tell."""
    mine = [{"prompt": f"{i} + 1 =", "answer": i + 1} for i in range(80)]
    prompts = {"source": "dataset", "dataset": "mine.jsonl", "answer_field": "answer", "per_iteration": 40}
    change(prompts=prompts)
    for other in (0, 1):
        rows = [*mine, *({**row, "answer": row["answer"] + other} for row in mine)]
        Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks.prompts.main("1")
        told = [line for line in capsys.readouterr().out.splitlines() if "with another answer" in line]
        dropped = record("data/prompts/1.manifest.json")["rows"]["dropped"]
        assert len(told) == len(dropped) == other
    assert told[0].startswith(f"prompts@1: {dropped['other_answer']} rows repeat a prompt with another answer")
