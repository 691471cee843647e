"""Bad input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tasks.generate
import tasks.items
import tasks.policy
import tasks.reference
import tasks.sample
import tasks.score
import tasks.train
from larpo import tables
from larpo.errors import UserError
from tests.conftest import ROOT, TINY_PARAMS

MESSAGES = [{"role": "user", "content": "1 + 1 ="}]


def prompts_frame(n: int = 3, answer: str | None = "2") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(n)], "source": "s", "messages": [MESSAGES] * n,
            "answer": [answer] * n, "solution": None,
        }
    )  # fmt: skip


def responses_frame(n: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(n)], "response_id": [f"r{i}" for i in range(n)], "iteration": 1,
            "temperature": 1.0, "seed": 1, "text": "2", "prompt_token_ids": [[5, 6]] * n, "token_ids": [[7, 1]] * n,
            "finish_reason": "stop", "origin": "policy",
        }
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path, monkeypatch, tiny_policy) -> Path:
    """A folder with params.yaml and a copy of policy 0; commands run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TINY_PARAMS.format(policy=tiny_policy))
    shutil.copytree(tiny_policy, "data/policy/0")
    Path("data/reward").mkdir()
    Path("data/reward/reward.json").write_text('{"kind": "rules"}')
    return tmp_path


def raw_table(frame: pd.DataFrame, path: str) -> None:
    """Write without our checks, as another program might."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)


def refuse(run, *words: str, output: str) -> None:
    with pytest.raises(UserError) as caught:
        run()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, f"{word!r} not in {line!r}"
    assert not Path(output).exists()


def test_prompt_table_with_duplicate_ids(workspace):
    frame = prompts_frame()
    frame.loc[2, "prompt_id"] = "p0"
    raw_table(frame, "data/prompts/1.parquet")
    refuse(
        lambda: tasks.sample.main("1"), "data/prompts/1.parquet", "row 2", "p0", "twice", output="data/sample/1.parquet"
    )


def test_prompt_table_with_a_missing_column(workspace):
    raw_table(prompts_frame().drop(columns="messages"), "data/prompts/1.parquet")
    refuse(lambda: tasks.sample.main("1"), "data/prompts/1.parquet", "missing messages", output="data/sample/1.parquet")


def test_truncated_parquet(workspace):
    raw_table(prompts_frame(), "data/prompts/1.parquet")
    path = Path("data/prompts/1.parquet")
    path.write_bytes(path.read_bytes()[:200])
    refuse(
        lambda: tasks.sample.main("1"),
        "data/prompts/1.parquet",
        "not a readable Parquet",
        output="data/sample/1.parquet",
    )


def test_rule_reward_without_answers(workspace):
    tables.write(prompts_frame(answer=None), "prompts", "data/prompts/1.parquet")
    tables.write(responses_frame(), "responses", "data/sample/1.parquet")
    refuse(
        lambda: tasks.score.main("1"), "data/prompts/1.parquet", "row 0", "final_number", output="data/score/1.parquet"
    )


def test_responses_to_unknown_prompts(workspace):
    tables.write(prompts_frame(2), "prompts", "data/prompts/1.parquet")
    tables.write(responses_frame(3), "responses", "data/sample/1.parquet")
    refuse(lambda: tasks.score.main("1"), "data/sample/1.parquet", "row 2", output="data/score/1.parquet")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: [(p / f).unlink() for f in ("tokenizer.json", "tokenizer_config.json")], ["tokenizer"]),
        (lambda p: (p / "chat_template.jinja").unlink(), ["chat template"]),
    ],
)
def test_checkpoint_without_tokenizer_or_chat_template(workspace, tiny_policy, spoil, words):
    broken = workspace / "broken"
    shutil.copytree(tiny_policy, broken)
    spoil(broken)
    params = (workspace / "params.yaml").read_text().replace(str(tiny_policy), str(broken))
    (workspace / "params.yaml").write_text(params)
    shutil.rmtree("data/policy/0")
    refuse(tasks.policy.main, "broken", *words, output="data/policy/0")


def test_missing_input_names_the_command(workspace):
    refuse(
        lambda: tasks.sample.main("1"), "data/prompts/1.parquet", "dvc repro sample@1", output="data/sample/1.parquet"
    )


def training_tables(reference: pd.DataFrame) -> None:
    responses = responses_frame(2).assign(prompt_id="p0", token_ids=[[7, 1], [8, 1]])
    rewards = {"reward": [1.0, 0.0], "correct": [True, False], "reward_name": "final_number"}
    tables.write(responses.assign(**rewards), "candidates", "data/candidates/1.parquet")
    lists = pd.DataFrame(
        {
            "prompt_id": "p0",
            "rank": [0, 1],
            "response_id": ["r0", "r1"],
            "reward": [1.0, 0.0],
            "role": ["positive", "negative"],
        }
    )
    tables.write(lists, "lists", "data/lists/1.parquet")
    tables.write(reference.assign(mismatched_logp=None), "reference", "data/reference/1.parquet")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (
            {"prompt_id": "p0", "response_id": ["r0"], "reference_logp": [-1.0], "n_tokens": [2]},
            ["no row for response r1"],
        ),
        (
            {"prompt_id": "p0", "response_id": ["r0", "r1"], "reference_logp": [-1.0, -2.0], "n_tokens": [2, 3]},
            ["r1", "another length"],
        ),
        (
            {"prompt_id": "p0", "response_id": ["r0", "r1"], "reference_logp": [-1.0, -900.0], "n_tokens": [2, 2]},
            ["before the first step", "other weights"],
        ),
    ],
)
def test_reference_rows_missing_or_of_another_model(workspace, reference, words):
    training_tables(pd.DataFrame(reference))
    refuse(lambda: tasks.train.main("1"), *words, output="data/policy/1")


def test_training_in_a_git_repository_without_a_commit(workspace):
    subprocess.run(["git", "init", "-q"], check=True)
    refuse(lambda: tasks.train.main("1"), "no commit", "git commit", output="data/policy/1")


def test_command_ends_with_2_and_one_line(project):
    """The whole command: no traceback, nothing written, also under DVC."""
    project.set("objective: lambdarank", "objective: lamdarank")
    done = project.node("prompts", "1", check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith("error: params.yaml: train.objective") and "lambdarank" in done.stderr
    assert not (project.folder / "data").exists() and not (project.folder / "scratch").exists()


def test_manifest_is_valid_json_and_written_last(workspace):
    tables.write(prompts_frame(), "prompts", "data/prompts/1.parquet")
    tasks.sample.main("1")
    record = json.loads(Path("data/sample/1.manifest.json").read_text())
    assert record["rows"]["in"] == 3 and record["node"] == "sample@1"


def test_a_benchmark_whose_judge_has_no_key_generates_nothing(workspace, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = workspace / "params.yaml"
    text = path.read_text().replace("judges: {}", "judges: {j: {model: m}}")
    asks = f"benchmark: mixeval, data: {ROOT / 'data/samples/questions'}, options: {{parser: model}}, judge: j"
    path.write_text(text.replace("  held_out: {items", f"  held_out: {{{asks}, items"))
    refuse(
        lambda: tasks.generate.main("0", "held_out"), "judges.j.api_key_env", "OPENAI_API_KEY is not set",
        output="data/generate/0-held_out.parquet",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("judges: {}", "judges: {j: {}}", ["judges.j.model"]),
        ("  held_out: {items", "  held_out: {judge: gpt, items", ["benchmarks.held_out.judge", "`judges` is empty"]),
        ("  held_out: {items", "  held_out: {benchmark: gsm9k, items", ["benchmarks.held_out.benchmark", "'gsm8k'"]),
        ("  held_out: {items: 8", "  held_out: {benchmark: gsm8k, data: ./no.jsonl, items: 8", ["data", "./no.jsonl"]),
        ("samples: 4", "samples: -1", ["benchmarks.held_out.generate.samples"]),
        ("samples: 4", "sample: 4", ["benchmarks.held_out.generate.sample", "'samples'"]),
    ],
)  # fmt: skip
def test_wrong_benchmark_settings(workspace, old, new, words):
    path = workspace / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    refuse(lambda: tasks.items.main("held_out"), *words, output="data/items")
