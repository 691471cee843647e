"""The real graph under DVC on a tiny policy: what runs, what is reused, what the bytes are."""

import json
import re
import shutil

import pandas as pd
import pytest
import yaml

from larpo import tables
from tests.conftest import Project


def ran(output: str) -> list[str]:
    """Stages whose command DVC ran, in order; `inputs` always runs."""
    return [name for name in re.findall(r"Running stage '([^']+)'", output) if name != "inputs"]


def recorded(project: Project) -> dict[str, str]:
    """Output path → hash from dvc.lock, without manifests (they hold times) and the report that shows them."""
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text())
    return {
        out["path"]: out["md5"]
        for stage in lock["stages"].values()
        for out in stage["outs"]
        if not out["path"].endswith("manifest.json") and not out["path"].startswith("report/index")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finished_project, warm_nodes) -> Project:
    """A copy of the finished run; its nodes start warm, which spares this file minutes."""
    project = finished_project.copy(tmp_path_factory.mktemp("graph") / "project")
    project.variables = warm_nodes
    return project


def test_every_node_ran_once_in_order(finished):
    stages = ran(finished.first_run)
    assert len(stages) == len(set(stages)) == 2 + 2 * 7 + 1 + 2 * 2 + 1
    for s, previous in (("1", "policy"), ("2", "train@1")):
        chain = [previous, f"sample@{s}", f"score@{s}", f"candidates@{s}", f"lists@{s}", f"reference@{s}", f"train@{s}"]
        assert [stages.index(name) for name in chain] == sorted(stages.index(name) for name in chain)
    assert stages[-1] == "report"


def test_tables_hang_together(finished):
    data = finished.folder / "data"
    for s in ("1", "2"):
        prompts = tables.read("prompts", data / f"prompts/{s}.parquet")
        responses = tables.read("responses", data / f"sample/{s}.parquet")
        rewards = tables.read("rewards", data / f"score/{s}.parquet")
        lists = tables.read("lists", data / f"lists/{s}.parquet")
        reference = tables.read("reference", data / f"reference/{s}.parquet")
        candidates = tables.read("candidates", data / f"candidates/{s}.parquet")
        assert len(prompts) == 12 and len(responses) == len(rewards) == 12 * 6
        assert len(candidates) == 12 * 6 * int(s), "memory keeps every earlier iteration"
        assert responses.groupby("prompt_id").size().eq(6).all()
        assert set(lists["response_id"]) <= set(candidates["response_id"])
        assert lists["response_id"].tolist() == reference["response_id"].tolist()
        # A cut-off response never ends with the end token, a complete one always does.
        ends = responses["token_ids"].map(lambda ids: ids[-1] == 1)
        assert (ends == (responses["finish_reason"] == "stop")).all()
        cut = responses.merge(rewards, on="response_id").query("finish_reason == 'length'")
        assert len(cut) and not cut["correct"].any() and (cut["reward"] == -1.0).all()
    second = tables.read("responses", data / "sample/2.parquet")
    assert second.groupby(["prompt_id", "temperature"]).size().eq(3).all(), "temperatures share the responses"


def test_no_evaluation_prompt_is_trained_on(finished):
    data = finished.folder / "data"
    trained = pd.concat([tables.read("prompts", data / f"prompts/{s}.parquet") for s in "12"])["prompt_id"]
    tested = tables.read("evaluations", data / "evaluate/0-held_out.parquet")["prompt_id"]
    assert set(tested).isdisjoint(set(trained)) and tested.nunique() == 8


def test_training_changed_the_policy_and_started_at_the_reference(finished):
    weights = {(finished.folder / f"data/policy/{s}/model.safetensors").read_bytes() for s in "012"}
    assert len(weights) == 3
    for s in "12":
        notes = json.loads((finished.folder / f"data/train/{s}.manifest.json").read_text())["notes"]
        assert notes["step0_loss"] == pytest.approx(notes["step0_expected"], abs=1e-4)
        curve = pd.read_csv(finished.folder / f"data/train/{s}/plots/metrics/loss.tsv", sep="\t")
        assert len(curve) == notes["steps"] and curve["step"].is_monotonic_increasing


def test_manifest_answers_what_was_run(finished):
    record = json.loads((finished.folder / "data/sample/1.manifest.json").read_text())
    assert record["inputs"].keys() == {"data/inputs/engine.json", "data/policy/0", "data/prompts/1.parquet"}
    assert record["rows"] == {"in": 12, "out": 72, "dropped": {}}
    assert record["packages"]["torch"] and record["hardware"]["cores"] and record["seconds"] > 0
    assert record["git"]["commit"] and record["notes"]["engine"]["dtype"] == "float32"
    lock = yaml.safe_load((finished.folder / "dvc.lock").read_text())["stages"]["sample@1"]["outs"]
    assert record["outputs"]["data/sample/1.parquet"] in {out["md5"] for out in lock}


def test_second_repro_runs_nothing(finished):
    """Nor is anything written: what `inputs` recorded is the same bytes, and so is dvc.lock."""
    assert ran(finished.dvc("repro").stdout) == []
    assert finished.run("git", "status", "--porcelain").stdout == ""


def test_new_objective_reuses_samples_and_scores(finished):
    """listmle: iteration 1 is shared up to its reference; training and what follows it runs again."""
    done = finished.dvc("exp", "run", "-S", "train.objective=listmle", "--name", "listmle")
    shown = json.loads(finished.dvc("metrics", "diff", "--json").stdout)
    # Back to the committed parameters: everything comes from the cache.
    finished.run("git", "checkout", "-q", "--", ".")
    again = finished.dvc("repro").stdout
    iteration_2 = [f"{node}@2" for node in ("sample", "score", "candidates", "lists", "reference", "train")]
    assert sorted(ran(done.stdout)) == sorted(
        ["train@1", *iteration_2, "generate@2-held_out", "evaluate@2-held_out", "report"]
    )
    assert shown["report/metrics.json"]
    assert ran(again) == []


def test_new_scoring_settings_generate_nothing_again(finished):
    finished.set("held_out: {items: 8,", "held_out: {items: 8, options: {ns: [2]},")
    try:
        done = finished.dvc("repro", "evaluate@0-held_out").stdout
    finally:
        finished.run("git", "checkout", "-q", "--", ".")
    assert ran(done) == ["items@held_out", "evaluate@0-held_out"]
    assert ran(finished.dvc("repro").stdout) == []


def test_metrics_and_plots(finished):
    """Scores first, and under ten of them: whatever else is measured is data."""
    shown = json.loads(finished.dvc("metrics", "show", "--json").stdout)
    (metrics,) = shown[""]["data"].values()
    assert set(metrics["data"]["held_out"]) == {"score", "gain", "pass_1", "mean_reward", "mean_length"}
    page = finished.dvc("plots", "show", "--out", "plots").stdout.strip()
    assert "index.html" in page
    shutil.rmtree(finished.folder / "plots")


def test_push_and_pull_through_a_local_remote(finished, tmp_path):
    """A clone with an empty cache gets every byte back from the remote. The commit is pushed, not what lies here:
    `inputs`, which always runs, was made anew when a parameter was changed back, and its manifest says when."""
    finished.dvc("remote", "add", "--local", "-f", "-d", "store", str(tmp_path / "store"))
    finished.dvc("push", "-q", "--all-commits")
    clone = tmp_path / "clone"
    finished.run("git", "clone", "-q", str(finished.folder), str(clone))
    shutil.copy(finished.folder / ".dvc/config.local", clone / ".dvc/config.local")
    done = finished.run("git", "-C", str(clone), "status", "--porcelain")
    assert done.stdout == ""
    other = object.__new__(Project)
    other.folder = clone
    other.dvc("pull", "-q")
    assert ran(other.dvc("repro").stdout) == []
    for name in ("data/lists/2.parquet", "data/policy/2/model.safetensors"):
        assert (clone / name).read_bytes() == (finished.folder / name).read_bytes()


def test_cold_nodes_make_what_warm_ones_made(finished, tmp_path):
    """The run's nodes started warm, forks of one process. That a clean clone makes the same is the audit's test."""
    other = finished.copy(tmp_path / "again")
    other.dvc("repro", "--single-item", "--force", "sample@1", "train@1")
    ours, theirs = recorded(finished), recorded(other)
    assert ours == theirs
    for stage in ("sample", "train"):
        path = f"data/{stage}/1.manifest.json"
        assert (other.folder / path).read_bytes() != (finished.folder / path).read_bytes(), "it ran again"
