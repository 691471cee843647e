"""Studies planned before they run: the graph unrolled as DVC does, what runs share, what is needed, every study."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.errors import UserError
from larpo.overlays import lay_all, lay_over
from larpo.params import parse_params
from larpo.plan import Assumptions, build_plan
from larpo.plan.graph import keys, needs, read_stages, select, unroll
from larpo.plan.needs import needs_of
from larpo.plan.render_study import render_overview, render_study, study_json
from larpo.plan.rewarding import comparisons
from larpo.plan.study import StudyPlan, plan_study, sum_up
from larpo.studies.spec import expand, load_study, names, targets
from tests.conftest import ROOT
from tests.larpo.test_plan_runs import FSFAIRX, PAIRRM, arithmetic, estimates, node, paper, plan_of

STAGES = read_stages(ROOT / "dvc.yaml")
TUNED = {
    "previous": "0", "learning_rate": 1e-5, "examples": 100,
    "data": {"source": "dataset", "dataset": "meta-math/MetaMathQA", "solution_field": "response"},
}  # fmt: skip
FULL = {
    "seed": 0, "reward": {}, "report": {}, "sft": {"base": TUNED, "more": TUNED | {"previous": "base"}},
    "iterations": {
        "1": {"previous": "more", "temperatures": [1.0]}, "2": {"previous": "0", "temperatures": [0.8]},
    },
    "evaluate": {"policies": ["0", "base", "2"]},
    "best_of_n": {"x": {"policy": "2", "benchmark": "gsm8k", "ns": [1, 4]}},
    "retrieval": {
        "own": {
            "model": "intfloat/e5-base-v2", "corpus": "data/samples/passages.jsonl",
            "queries": "data/samples/queries.jsonl",
        }
    },
}  # fmt: skip
"""Something in every section of params.yaml that a stage is unrolled over."""


# The graph ------------------------------------------------------------------------------------------------------


def test_unrolled_as_dvc_does(tmp_path):
    """Names, what each stage needs, and the parameters it depends on, beside what DVC itself reads. Stages: policy,
    reward, report; 2 of sft; 7 per iteration; 3 items, 3 policies · 3 benchmarks twice; best_of_n, embed, retrieve:
    3 + 2 + 14 + 3 + 18 + 3 = 43."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    from flows.graph import read_graph

    raw = paper(**FULL)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    Repo.init(str(tmp_path), no_scm=True).close()
    theirs, ours = read_graph(tmp_path), unroll(STAGES, raw)
    assert set(ours) == set(theirs) and len(ours) == 43
    for name, makers in needs(ours).items():
        assert {m for found in makers.values() for m in found} == set(theirs[name].needs), name
    with Repo(str(tmp_path)) as repo:
        for stage in repo.index.stages:
            depends = [d for d in stage.deps if isinstance(d, ParamsDependency)]
            assert sorted(p for d in depends for p in d.params or [""]) == sorted(ours[stage.name].params), stage.name
            assert ours[stage.name].command == stage.cmd
    assert {n.name for n in build_plan(parse_params(raw)).nodes} == set(ours), "every stage is planned"


def test_only_what_the_targets_need():
    """The evaluation of policy 0 needs no training; that of policy 2, which starts from 0, needs one iteration. The
    memory of iteration 2 starts at policy 0 as well."""
    raw = paper(**(FULL | {"evaluate": {"policies": ["0"]}, "best_of_n": {}}))
    found = select(unroll(STAGES, raw), ["evaluate"])
    assert {n.partition("@")[0] for n in found} == {"policy", "items", "generate", "evaluate"}
    raw = paper(**(FULL | {"evaluate": {"policies": ["2"]}, "best_of_n": {}}))
    found = select(unroll(STAGES, raw), ["evaluate"])
    assert "train@2" in found and not {"train@1", "sft@base", "embed@own", "report"} & found
    with pytest.raises(UserError, match=r"dvc\.yaml: stage retrieve: retrieval: no such parameter"):
        unroll({"retrieve": STAGES["retrieve"]}, {k: v for k, v in raw.items() if k != "retrieval"})


TINY = {
    "a": {"cmd": "a", "params": ["seed", "a"], "deps": ["a.py"], "outs": ["out/a"]},
    "b": {"foreach": "${b}", "do": {"cmd": "b ${key}", "params": ["b.${key}"], "deps": ["out"], "outs": ["b/${key}"]}},
    "c": {"cmd": "c", "params": [{"params.yaml": None}], "deps": ["b/x"], "outs": ["c"]},
}


def test_keys_by_hand():
    """`b@x` reads the folder that `a` writes into: its key changes with a's parameters and its own, not with those of
    `b@y`. `c` depends on the whole file."""

    def of(**changes):
        params = {"seed": 0, "a": 1, "b": {"x": {"p": 1}, "y": {"p": 1}}} | changes
        return keys(unroll(TINY, params), params)

    base = of()
    assert set(base) == {"a", "b@x", "b@y", "c"}

    def changed(**changes):
        return {name for name, key in of(**changes).items() if key != base[name]}

    assert changed() == set()
    assert changed(seed=1) == changed(a=2) == {"a", "b@x", "b@y", "c"}
    assert changed(b={"x": {"p": 1}, "y": {"p": 2}}) == {"b@y", "c"}
    assert changed(other=1) == {"c"}


# Nodes of the present graph, worked out by hand -------------------------------------------------------------------


def test_mismatched_and_gold_responses():
    """Best and worst, and a mismatched one behind the same prompt: 2 epochs · 20,000 · (200 + 3 · 449) = 61,880,000
    tokens; the reference reads half of that in one pass. With gold responses 11 of each prompt are scored, none more is
    sampled; a gold positive against all the rest makes lists of 1 + 10, of correct ones against the rest 10."""
    pair = {"lists.recipe": "best_worst"}
    kto = plan_of(**pair, **{"reference.mismatched": True, "train.objective": "kto"})
    assert node(kto, "train@1").train_tokens.value == 61_880_000
    assert node(kto, "reference@1").hours.formula.startswith("30,940,000 tokens")
    assert node(plan_of(**pair), "train@1").train_tokens.value == 40_000 * (200 + 2 * 449)
    gold = {"sample.gold": True, "prompts.solution_field": "answer", "lists.positive": "gold", "lists.top": 1}
    plan = plan_of(**gold, **FSFAIRX, **{"lists.recipe": "top_rest"})
    assert node(plan, "sample@1").sample_tokens.value == 20_000 * 10 * 450
    assert node(plan, "score@1").notes == ("20,000 prompts · 11 responses · 650 tokens read",)
    assert node(plan, "train@1").train_tokens.value == 40_000 * (200 + 11 * 449)
    correct = plan_of(**{"lists.recipe": "top_rest", "lists.top": 1, "lists.positive": "correct"})
    assert node(correct, "train@1").train_tokens.value == 40_000 * (200 + 10 * 449)


def test_which_candidates_enter():
    """Fresh prompts, memory `all`: 20,000, 40,000 and 60,000 lists; `previous` at most 40,000; `first` 20,000 in every
    iteration. The same prompts: 20,000 lists whatever the memory, and with the recipe `all` they have 10, 20, 20
    responses under `previous`."""

    def lists(**changes):
        plan = plan_of(**{"lists.recipe": "best_worst", "train.epochs": 1} | changes)
        return [node(plan, f"train@{s}").train_tokens.value for s in "123"]

    one = 20_000 * (200 + 2 * 449)
    assert lists(**{"lists.memory": "all"}) == [one, 2 * one, 3 * one]
    assert lists(**{"lists.memory": "previous"}) == [one, 2 * one, 2 * one]
    assert lists(**{"lists.memory": "first"}) == [one, one, one]
    assert lists(**{"lists.memory": "all", "prompts.draw": "same"}) == [one, one, one]
    whole = lists(**{"lists.memory": "previous", "prompts.draw": "same", "lists.recipe": "all"})
    assert whole == [20_000 * (200 + m * 449) for m in (10, 20, 20)]


def test_offline_training_on_one_large_set():
    """60,000 prompts · 10 responses · 450 tokens in one iteration; the data set has 61,135 prompts, so 70,000 fail."""
    once = {"iterations": {"3": {"previous": "0", "temperatures": [0.8]}}, "prompts.held_out": 0}
    plan = plan_of(**once, **{"prompts.per_iteration": 60_000})
    assert node(plan, "sample@3").sample_tokens.value == 270_000_000
    assert plan.failed == []
    line = "prompts.per_iteration: 70,000 of 61,135 (HuggingFaceH4/ultrafeedback_binarized)"
    assert plan_of(**once, **{"prompts.per_iteration": 70_000}).failed == [line]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(1, 9), st.randoms())
def test_comparisons_are_those_that_pairrm_makes(k, passes, rng):
    """Of 4 responses: 4 · 3 ordered pairs, or 2 · (3 + 2) in two passes of bubble sort; and never fewer than the real
    code compares, exactly as many in its first pass."""
    from larpo.rewards.pairrm import bubble

    assert comparisons(4, {})[0] == 12
    assert comparisons(4, {"comparisons": "bubble", "passes": 2})[0] == 10

    class Counting:
        made = 0

        def compare(self, jobs):
            self.made += len(jobs)
            return [rng.uniform(-1, 1) for _ in jobs]

    comparer = Counting()
    bubble(comparer, [[f"text {i}" for i in range(k)]], passes)
    bound = comparisons(k, {"comparisons": "bubble", "passes": passes})[0]
    assert comparer.made <= bound
    if passes == 1:
        assert comparer.made == bound == 2 * (k - 1)


def test_pairrm_and_sums_of_rewards():
    """A prompt of 200 and two of 450 tokens: 1,100 read by each of 20,000 · 90 comparisons, all attended. In a sum the
    rule costs nothing. A prompt longer than source_max_length is cut to it."""
    plan = plan_of(**PAIRRM)
    flops = 20_000 * 90 * 1100 * (2 * 434_012_160 + 4 * 24 * 1024 * 1100)
    assert node(plan, "score@1").hours.value == pytest.approx(flops / (67e12 * 0.5) / 3600)
    parts = [{"reward": "final_number"}, {"reward": "pairrm", "weight": 0.1, "options": {"source_max_length": 100}}]
    summed = plan_of(**{**PAIRRM, "score": {"reward": "sum", "options": {"parts": parts}}})
    notes = node(summed, "score@1").notes
    assert notes == ("rule final_number, on the CPU", "20,000 prompts · 10 · 9 ordered pairs · 1000 tokens read")
    tight = plan_of(**{**FSFAIRX, "reward": FSFAIRX["reward"] | {"max_length": 1024}})
    assert any("a response is never cut" in line for line in tight.failed)


def test_a_reward_that_is_trained(tmp_path):
    """1,000 pairs, a tenth held out, 2 epochs, both halves of 400 tokens: 900 · 2 · 2 · 400 = 1,440,000 tokens, in
    float32: 4 · 7,504,928,768 B of weights; no vocabulary, so no logits. Accuracy on 100 held-out pairs and 50 of a
    file reads 150 · 2 · 400 = 120,000 tokens. Pairs that are not here and of no known number make the hours unknown."""
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 50)
    train = {"data": {"data": "someone/pairs"}, "learning_rate": 1e-5, "epochs": 2}
    wanted = {
        **FSFAIRX,
        "reward": FSFAIRX["reward"] | {"train": train, "checks": {"own": {"data": str(file)}}},
    }
    unknown = node(plan_of(**wanted), "reward")
    assert unknown.train_tokens.value is None and "--assume items.someone/pairs=N" in unknown.hours.formula
    assert unknown.memory["weights"].value == 4 * 7_504_928_768 and unknown.memory["logits"].value == 0
    found = node(plan_of(Assumptions().override(["items.someone/pairs=1000"]), **wanted), "reward")
    assert found.train_tokens.value == 1_440_000
    work = 2 * 7_504_928_768
    trained = 3 * 1_440_000 * (work + 4 * 32 * 4096 * 400) / (67e12 * 0.4)
    measured = 120_000 * (work + 4 * 32 * 4096 * 200) / (989e12 * 0.5)
    assert found.hours.value == pytest.approx((trained + measured) / 3600)
    rules = node(plan_of(), "reward")
    assert rules.notes == ("no model: rules, on the CPU",) and rules.hours is None


def test_best_of_n_and_encoders(monkeypatch):
    """100 sampled items · 20 samples of 200 tokens behind 90: 290 read by FsfairX. The passages that ship with the
    project are 48, the queries 52: 100 · 256 tokens; a flat index holds 48 · 768 · 4 B. Related negatives encode 20,000
    prompts of 200 tokens."""
    monkeypatch.chdir(ROOT)
    best = {"x": {"policy": "3", "benchmark": "gsm8k", "ns": [1, 4]}}
    plan = plan_of(**FSFAIRX, best_of_n=best)
    assert node(plan, "best_of_n@x").notes == ("100 prompts · 20 responses · 290 tokens read",)
    plan = plan_of(retrieval=FULL["retrieval"])
    assert node(plan, "embed@own").hours.formula.startswith("25,600 tokens")
    assert "48 passages of a shard · 768 · 4 B" in node(plan, "retrieve@own").notes[0]
    big = {"own": FULL["retrieval"]["own"] | {"index": "ivf_pq", "index_options": {"m": 64}}}
    plan = plan_of(Assumptions().override(["items.own=21000000"]), retrieval=big)
    assert "21,000,000 passages · 64 B of code = 1.3 GiB" in node(plan, "retrieve@own").notes[0]
    absent = {"own": FULL["retrieval"]["own"] | {"corpus": "no.jsonl.gz"}}
    assert "--assume items.own=N" in node(plan_of(retrieval=absent), "embed@own").hours.formula
    related = plan_of(**{"lists.negatives": "related", "lists.related_model": "intfloat/e5-base-v2"})
    assert node(related, "lists@1").hours.formula.startswith("4,000,000 tokens")


def test_printed_formulas_of_the_new_nodes(monkeypatch):
    """As for the other nodes: the arithmetic beside a number gives the number."""
    monkeypatch.chdir(ROOT)
    train = {"data": {"data": "someone/pairs"}, "learning_rate": 1e-5}
    reward = FSFAIRX["reward"] | {"train": train, "checks": {"own": {"data": "someone/pairs"}}}
    changes = FULL | {"score.reward": "sequence_classification", "reward": reward, "lists.negatives": "related"}
    changes |= {"lists.related_model": "intfloat/e5-base-v2", "lists.memory": "current"}
    plan = build_plan(parse_params(paper(**changes)), Assumptions().override(["items.someone/pairs=1000"]))
    found = estimates(plan)
    assert {n.partition("@")[0].split()[0] for n, _ in found} >= {
        "reward",
        "sft",
        "lists",
        "embed",
        "best_of_n",
        "score",
    }
    for name, estimate in found:
        assert arithmetic(estimate.formula) == pytest.approx(estimate.value, rel=2e-3, abs=1), (name, estimate)


# Overlays ---------------------------------------------------------------------------------------------------------


def test_overlays_lie_between_base_and_study(tmp_path, monkeypatch):
    """The file's sections over the base's, the study's and the cell's settings over the file's; `*` reaches every
    fine-tuning and makes none."""
    tuned = {"base": {"previous": "0"}, "other": {"launch": "x"}}
    assert lay_over({"sft": tuned}, {"sft": {"*": {"launch": "f"}}})["sft"] == {
        "base": {"previous": "0", "launch": "f"}, "other": {"launch": "f"},
    }  # fmt: skip
    assert lay_over({"sft": {}}, {"sft": {"*": {"launch": "f"}}}) == {"sft": {}}
    assert lay_over({}, {"sft": {"*": {"launch": "f"}}, "a": {"b": 1}}) == {"sft": {}, "a": {"b": 1}}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(paper(seed=0)))
    over = {"train": {"epochs": 5, "learning_rate": 0.5}, "sample": {"responses": 12}, "lists": {"top": 3}}
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    study = load_study(tmp_path, "small")
    one, *_ = expand(study, tmp_path, "paper", 1, ["over.yaml"])
    assert (one.params["train"]["epochs"], one.params["train"]["learning_rate"]) == (5, 1e-6)
    assert (one.params["sample"]["responses"], one.params["lists"]["top"]) == (12, 1)
    assert expand(study, tmp_path, "paper", 1)[0].params["train"]["epochs"] == 2
    with pytest.raises(UserError, match=r"^absent\.yaml: not found; expected sections of params\.yaml$"):
        expand(study, tmp_path, "paper", 1, ["over.yaml", "absent.yaml"])
    with pytest.raises(UserError, match=r"^list\.yaml: expected a mapping of sections, found list$"):
        lay_all({}, ["list.yaml"])


# Studies ----------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "name": "small", "title": "t", "paper": "Table 3", "about": "a", "seeds": 2,
    "scales": {
        "paper": {
            "base": "base.yaml", "policy": "1",
            "set": {
                "iterations": {"1": {"previous": "0", "temperatures": [0.8]}}, "train.learning_rate": 1e-6,
                "benchmarks": {"gsm8k": {"benchmark": "gsm8k", "generate": {"max_new_tokens": 400}}},
                "sft": {}, "reward": {}, "retrieval": {}, "best_of_n": {}, "lists.top": 1,
            },
        }
    },
    "cells": {
        "one": {"label": "one"}, "two": {"label": "two", "set": {"train.objective": "listmle"}},
        "again": {"label": "as one"},
    },
    "measures": {"score": {"label": "s", "paper": {"file": "data/evaluate/1-gsm8k.json", "key": "greedy/accuracy"}}},
}  # fmt: skip


@pytest.fixture
def small(tmp_path) -> Path:
    """A project's folder with dvc.yaml and one study at scale `paper`."""
    (tmp_path / "studies").mkdir()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (tmp_path / "studies/base.yaml").write_text(yaml.safe_dump(paper(seed=0)))
    (tmp_path / "studies/small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    return tmp_path


def test_what_runs_share(small):
    """A run has 12 nodes: policy, reward, prompts, sample, score, candidates, lists, reference, train, items, generate,
    evaluate. Three cells · 2 seeds · 12 = 72. `again` is `one`, so shared are the nodes of two cells: policy and reward
    once (no seed in them), items, prompts, sample, score, candidates, lists and reference once per seed (7 · 2), and
    train, generate and evaluate per objective and seed (3 · 4): 2 + 14 + 12 = 28."""
    found = plan_study(small, "small", "paper")
    assert (found.runs, found.apart.nodes, found.shared.nodes) == (6, 72, 28)
    plan = found.cells[0].plan
    assert [c.same_as for c in found.cells] == [None, None, "one"]
    hours = {kind: node(plan, name).hours.value for kind, name in (
        ("sample", "sample@1"), ("reference", "reference@1"), ("train", "train@1"), ("generate", "generate@1-gsm8k"),
    )}  # fmt: skip
    assert found.apart.hours == pytest.approx(6 * sum(hours.values()))
    shared = 2 * (hours["sample"] + hours["reference"]) + 4 * (hours["train"] + hours["generate"])
    assert found.shared.hours == pytest.approx(shared)
    # One GPU throughout, so hours on the clock are GPU hours; 20,000 · 10 · 450 and 1,319 · 200 tokens are sampled.
    assert found.shared.clock_hours == pytest.approx(shared)
    assert found.shared.sample_tokens == 2 * 90_000_000 + 4 * 1319 * 200
    assert found.shared.train_tokens == 4 * 40_000 * (200 + 3 * 449)


def test_text_and_json_say_the_same(small):
    found = plan_study(small, "small", "paper")
    tree = json.loads(json.dumps(study_json(found)))
    assert tree["totals"]["equal_nodes_once"]["hours"] == found.shared.hours
    assert tree["first_cell"]["totals"]["gpu_hours"] == pytest.approx(tree["cells"][0]["hours"])
    text = render_study(found)
    assert "3 cells · 2 seeds = 6 runs" in text and "again: the same run as one" in text
    for need, _ in found.needs:
        assert need.name in text and need.source in text
    for check, _ in found.checks:
        assert check.line in text
    assert "Formulas" in text and "Formulas" not in render_study(found, formulas=False)


def test_what_is_needed(tmp_path, monkeypatch):
    """Hub ids with or without revision, files present or absent, a judge's variable set or not; never its value."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").write_text("{}\n")
    monkeypatch.setenv("MY_KEY", "do-not-print")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    retrieval = {"own": {"model": "intfloat/e5-base-v2", "corpus": "here.jsonl", "queries": "absent.jsonl"}}
    raw = paper(**{
        "policy.revision": "abc123", "judges.parser.api_key_env": "MY_KEY", "retrieval": retrieval,
        "judges.local": {"model": "m", "base_url": "http://127.0.0.1:8000/v1"}, "benchmarks.hard.judge": "local",
    })  # fmt: skip
    raw["benchmarks"]["mixeval"] = raw["benchmarks"]["hard"] | {"benchmark": "mixeval", "judge": "parser"}
    params = parse_params(raw)
    found = {(n.key, n.name): n for n in needs_of(params, build_plan(params))}
    sources = {key: n.source for (key, _), n in found.items()}
    assert sources["policy.model"] == "hub, revision abc123"
    assert sources["retrieval.own.model"] == "hub, revision not pinned"
    assert sources["prompts.dataset"] == "hub, revision not pinned, split train"
    assert found["benchmarks.gsm8k.data", "openai/gsm8k"].source == "hub, revision not pinned, split test"
    assert (sources["retrieval.own.corpus"], sources["retrieval.own.queries"]) == ("file, present", "file, absent")
    assert sources["judges.parser"] == "OpenAI, key in MY_KEY: set"
    assert sources["judges.gpt4"] == "OpenAI, key in OPENAI_API_KEY: unset"
    assert sources["judges.local"] == "http://127.0.0.1:8000/v1, no key"
    assert "do-not-print" not in str(found)
    assert {key for (key, _), n in found.items() if n.missing} == {"retrieval.own.queries", "judges.gpt4"}
    # Only what the planned nodes need.
    few = needs_of(params, build_plan(params, only={"policy", "items@gsm8k", "generate@0-gsm8k"}))
    assert [n.key for n in few] == ["policy.model", "benchmarks.gsm8k.data"]


def study(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    command = [sys.executable, "-m", "flows.cli", "study", "small", "--scale", "paper", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "do-not-print"} | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command(small):
    """Exit codes 0, 1 (does not fit) and 2 (bad input, one line); it writes nothing."""
    before = sorted(small.rglob("*"))
    done = study(small, "--dry-run", "--json", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == 3
    done = study(small, "--dry-run", "--gpu-memory", "24", "--no-formulas")
    assert done.returncode == 1 and "FAIL train: " in done.stdout and "do-not-print" not in done.stdout
    for arguments, words in (
        (["--dry-run", "--assume", "gpu=2"], "expected NAME=VALUE; did you mean 'gpus'?"),
        (["--dry-run", "--with", "absent.yaml"], "absent.yaml: not found"),
        (["--with", "absent.yaml"], "absent.yaml: not found"),
        (["--gpus", "8"], "plan only; add --dry-run"),
        (["--dry-run", "--seeds", "0"], "seeds: expected 1 or more"),
    ):
        done = study(small, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr, (arguments, done.stderr)
    assert sorted(small.rglob("*")) == before


EVERY = [(name, scale) for name in names(ROOT / "studies") for scale in ("cpu", "paper")]


@pytest.fixture(scope="module")
def every() -> dict[tuple[str, str], StudyPlan]:
    """All studies at both scales, on one GPU and on eight, with sockets that refuse to be made."""
    import os

    def refuse(*_, **__):
        raise AssertionError("a plan asks no network")

    before, real, here = socket.socket.connect, socket.getaddrinfo, Path.cwd()
    socket.socket.connect, socket.getaddrinfo = refuse, refuse
    os.chdir(ROOT)
    try:
        found = {}
        for name, scale in EVERY:
            study = load_study(ROOT / "studies", name)
            if scale in study.scales:
                overlays = ["configs/params-8x80gb.yaml"] if scale == "paper" else []
                a = Assumptions(gpus=8 if scale == "paper" else 1)
                found[name, scale] = plan_study(ROOT, name, scale, overlays=overlays, assumptions=a)
        return found
    finally:
        socket.socket.connect, socket.getaddrinfo = before, real
        os.chdir(here)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_overview_of_all_studies(every, scale):
    """A row per study and one for all: together they need no more than one after another, and no less than the most."""
    found = [plan for (_, s), plan in every.items() if s == scale]
    lines = render_overview(found).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [*(p.study.name for p in found), "all"]
    once = {key: n for plan in found for key, n in plan.once.items()}
    total = sum_up(once.values())
    assert max(p.shared.hours for p in found) <= total.hours <= sum(p.shared.hours for p in found) + 1e-9
    assert f"| {total.nodes:,} |" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_study_is_planned(every, name, scale):
    """Every cell has a plan and everything fits; sharing costs at most what every run by itself does; and two nodes of
    equal key have equal numbers, or sharing would hide a cost."""
    if (name, scale) not in every:
        pytest.skip(f"{name} has no scale {scale}")
    found = every[name, scale]
    assert [c.name for c in found.cells] == list(found.study.cells)
    assert found.failed == []
    assert 0 < found.shared.nodes <= found.apart.nodes
    for total in ("hours", "clock_hours", "sample_tokens", "train_tokens", "judge_calls", "judge_cost"):
        assert getattr(found.shared, total) <= getattr(found.apart, total)
    apart = sum_up([n for cell in found.cells for n in cell.plan.nodes])
    assert found.apart.hours == pytest.approx(found.seeds * apart.hours)
    assert any(need.kind == "model" for need, _ in found.needs)
    text = render_study(found)
    assert all(cell.name in text for cell in found.cells)
    json.dumps(study_json(found))
    plans = {cell.name: {n.name: n for n in cell.plan.nodes} for cell in found.cells}
    overlays = [ROOT / file for file in found.overlays]
    once: dict[str, Any] = {}
    runs = expand(found.study, ROOT / "studies", scale, 1, overlays)
    for run in runs:
        stages = unroll(STAGES, run.params)
        assert set(plans[run.cell]) == select(stages, targets(runs))
        for stage, key in keys(stages, run.params).items():
            if stage in plans[run.cell]:
                here = replace(plans[run.cell][stage])
                assert once.setdefault(key, here) == here, (run.cell, stage)
