"""Node `sft`: a model from random weights learns, is never shown what is held out, and survives a kill."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import tasks.sft
from larpo import tables
from larpo.errors import UserError
from larpo.load import load_params
from larpo.sources.prompts import draw, is_held_out
from tests.conftest import Project
from tests.tasks.conftest import change

SFT = """policy:
  model: scratch
  architecture: {characters: "0123456789+- ", hidden_size: 32, layers: 2, heads: 2, max_length: 128}
sft:
  base:
    previous: "0"
    data:
      source: reasoning_gym
      tasks: [{name: chain_sum, question_field: expression, config: {min_terms: 2, max_terms: 2, max_digits: 1}}]
      held_out: 0.3
    examples: 40
    epochs: 30
    learning_rate: 1.0e-2
    examples_per_step: 20
    examples_per_device_batch: 10
    save_steps: 5
"""


@pytest.fixture
def sft_project(project: Project, warm_nodes) -> Project:
    path = project.folder / "params.yaml"
    path.write_text(re.sub(r"policy: .*\n", SFT, path.read_text().replace("sft: {}\n", ""), count=1))
    project.set('"1": {previous: "0"', '"1": {previous: base')
    project.run("git", "commit", "-qam", "sft")
    project.variables = warm_nodes
    project.node("inputs")
    project.node("policy")
    return project


def test_sft_learns_and_an_iteration_starts_from_it(sft_project):
    project = sft_project
    done = project.dvc("repro", "sample@1")
    assert done.stdout.index("'sft@base'") < done.stdout.index("'sample@1'")
    loss = pd.read_csv(project.folder / "data/sft/base/plots/metrics/loss.tsv", sep="\t")["loss"]
    assert loss.tail(5).mean() < 0.6 * loss.head(3).mean()
    notes = json.loads((project.folder / "data/sft/base.manifest.json").read_text())
    assert notes["rows"] == {"in": 40, "out": 40, "dropped": {"blank_solution": 0, "too_long": 0, "unknown_tokens": 0}}
    assert notes["notes"]["weights_changed"] > 0.5
    assert notes["notes"]["steps"] == len(loss) == 60
    # Its responses end where the references end: with the end token.
    responses = tables.read("responses", project.folder / "data/sample/1.parquet")
    assert (responses["finish_reason"] == "stop").mean() > 0.9
    assert tables.read("candidates", project.folder / "data/candidates/base.parquet", empty=True).empty
    params = load_params(project.folder / "params.yaml")
    seen = draw(params.sft["base"].data, 40, 0, held_out=False)["messages"]
    assert not any(is_held_out(params.prompts, messages) for messages in seen)


@pytest.mark.faults
def test_killed_and_resumed_it_has_the_same_weights(sft_project):
    folder, weights = sft_project.folder, "data/policy/base/model.safetensors"
    sft_project.node("sft", "base")
    whole = (folder / weights).read_bytes()
    shutil.rmtree(folder / "data/policy/base")
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.sft", "base"], cwd=folder, env=sft_project.environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("scratch/sft@base/*/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / weights).exists()
    done = sft_project.node("sft", "base")
    assert "resuming from checkpoint-" in done.stdout
    assert (folder / weights).read_bytes() == whole


def test_data_without_solutions_and_examples_too_long_are_one_line(workspace, capsys):
    """In this process: the node refuses before it trains."""
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"{i} + 1", "s": "1"}) + "\n" for i in range(60)))
    data = {"source": "dataset", "dataset": "rows.jsonl", "solution_field": "s", "held_out": 0.3}
    base = {"previous": "0", "data": data, "examples": 20, "learning_rate": 1e-3}
    for changes, words in (
        ({"max_length": 8}, "sft.base.max_length: none of 20 examples"),
        ({"data": data | {"solution_field": None}}, "solution_field: 20 of 20 prompts have no reference response"),
    ):
        change(sft={"base": base | changes})
        with pytest.raises(UserError) as caught:
            tasks.sft.main("base")
        assert words in str(caught.value) and "\n" not in str(caught.value)
        assert not Path("data/policy/base").exists()
    # A blank solution would teach to end at once: dropped and counted.
    blank = [{"prompt": f"{i} + 1", "s": " \n" if i % 3 == 0 else "1"} for i in range(60)]
    blank += [{**row, "s": "2"} for row in blank if row["s"] == "1"]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in blank))
    change(sft={"base": base})
    tasks.sft.main("base")
    rows = json.loads(Path("data/sft/base.manifest.json").read_text())["rows"]
    again = rows["dropped"]["other_answer"]
    assert rows["in"] == 20 + again and 0 < rows["dropped"]["blank_solution"] == 20 - rows["out"] < 20
    assert f"sft@base: {again} rows repeat a prompt with another answer" in capsys.readouterr().out
