"""Studies planned before they run: the graph unrolled as DVC does, what runs share, what is needed, every study."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from larpo.config.overlays import lay_all, lay_over
from larpo.config.params import parse_params
from larpo.config.reward import RULES
from larpo.errors import UserError
from larpo.graph import keys, needs, read_stages, select, unroll
from larpo.plan import Assumptions, build_plan
from larpo.plan.needs import needs_of
from larpo.plan.plans import Totals
from larpo.plan.render_study import render_overview, render_study, study_json
from larpo.plan.study import StudyPlan, plan_study
from larpo.studies.expand import expand, load_study, names, targets
from tests.conftest import ROOT
from tests.larpo.plan.test_plan_nodes import FULL
from tests.larpo.plan.test_plan_runs import node, paper

STAGES = read_stages(ROOT / "dvc.yaml")
# The graph ------------------------------------------------------------------------------------------------------


def test_unrolled_as_dvc_does(tmp_path):
    """Names, what each stage needs, and the parameters it depends on, beside what DVC itself reads. Stages: policy,
    reward, report; 2 of sft; 7 per iteration; 3 items, 3 policies · 3 benchmarks twice; best_of_n, embed, retrieve:
    3 + 2 + 14 + 3 + 18 + 3 = 43. The reward is a head on a policy of the run, so DVC makes that first."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    from larpo.workspace.dvc import read_graph

    head = {"start": "data/policy/base", "train": {"data": {"data": "a/b"}, "learning_rate": 1e-5}}
    raw = paper(**FULL | {"reward": head})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    Repo.init(str(tmp_path), no_scm=True).close()
    theirs, ours = read_graph(tmp_path), unroll(STAGES, raw)
    assert set(ours) == set(theirs) and len(ours) == 43
    assert set(theirs["reward"].needs) == {"sft@base"}
    for name, makers in needs(ours).items():
        assert {m for found in makers.values() for m in found} == set(theirs[name].needs), name
    with Repo(str(tmp_path)) as repo:
        for stage in repo.index.stages:
            depends = [d for d in stage.deps if isinstance(d, ParamsDependency)]
            assert sorted(p for d in depends for p in d.params or [""]) == sorted(ours[stage.name].params), stage.name
            assert ours[stage.name].command == stage.cmd
    assert {n.name for n in build_plan(parse_params(raw)).nodes} == set(ours), "every stage is planned"


def test_only_what_the_targets_need():
    """The evaluation of policy 0 needs no training; that of policy 2, which starts from 0, needs one iteration, and the
    policy that iteration 1 starts from, for `reference.model: initial`. Its memory starts at policy 0 as well."""
    raw = paper(**(FULL | {"evaluate": {"policies": ["0"]}, "best_of_n": {}}))
    found = select(unroll(STAGES, raw), ["evaluate"])
    assert {n.partition("@")[0] for n in found} == {"policy", "items", "generate", "evaluate"}
    raw = paper(**(FULL | {"evaluate": {"policies": ["2"]}, "best_of_n": {}}))
    found = select(unroll(STAGES, raw), ["evaluate"])
    assert {"train@2", "sft@more"} < found and not {"train@1", "sample@1", "embed@own", "report"} & found
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


# Overlays ---------------------------------------------------------------------------------------------------------


def test_overlays_lie_between_base_and_study(tmp_path, monkeypatch):
    """The file's sections over the base's, the study's and the cell's settings over the file's; `*` reaches every
    fine-tuning and makes none."""
    tuned = {"base": {"previous": "0"}, "other": {"launch": "x"}}
    assert lay_over({"sft": tuned}, {"sft": {"*": {"launch": "f"}}})["sft"] == {
        "base": {"previous": "0", "launch": "f"},
        "other": {"launch": "f"},
    }
    assert lay_over({"sft": {}}, {"sft": {"*": {"launch": "f"}}}) == {"sft": {}}
    assert lay_over({"sft": tuned}, {"sft": {"*": None, "new": {}}}) == {"sft": {"new": {}}}
    assert lay_over({"sft": tuned, "seed": 1}, {"sft": {"base": None, "absent": None}, "seed": None}) == {
        "sft": {"other": tuned["other"]},
        "seed": None,
    }
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
    "name": "small",
    "title": "t",
    "paper": "Table 3",
    "about": "a",
    "scales": {
        "paper": {
            "base": "base.yaml",
            "policy": "1",
            "rule": {"primary": "score", "first_seed": 0, "looks": [2], "level": 0.05, "margin": 0.02},
            "set": {
                "iterations": {"1": {"previous": "0", "temperatures": [0.8]}},
                "train.learning_rate": 1e-6,
                "benchmarks": {"gsm8k": {"benchmark": "gsm8k", "generate": {"max_new_tokens": 400}}},
                "sft": {},
                "reward": {"start": RULES},
                "retrieval": {},
                "best_of_n": {},
                "lists.top": 1,
            },
        }
    },
    "cells": {
        "one": {"label": "one"},
        "two": {"label": "two", "set": {"train.objective": "listmle"}},
        "again": {"label": "as one"},
    },
    "measures": {"score": {"label": "s", "paper": {"file": "data/evaluate/1-gsm8k.json", "key": "greedy/accuracy"}}},
}


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
    names = {"sample": "sample@1", "reference": "reference@1", "train": "train@1", "generate": "generate@1-gsm8k"}
    hours = {kind: node(plan, name).hours.value for kind, name in names.items()}
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
    assert "Formulas" not in text and "Formulas" in render_study(found, formulas=True)
    assert text.splitlines()[-1].startswith("Verdict: fits, ")


def test_what_is_needed(tmp_path, monkeypatch):
    """Hub ids with or without revision, files present or absent, a judge's variable set or not; never its value."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").write_text("{}\n")
    monkeypatch.setenv("MY_KEY", "do-not-print")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    retrieval = {"own": {"model": "intfloat/e5-base-v2", "corpus": "here.jsonl", "queries": "absent.jsonl"}}
    changes = {"policy.revision": "abc123", "judges.parser.api_key_env": "MY_KEY", "retrieval": retrieval}
    changes |= {
        "judges.local": {"model": "m", "base_url": "http://127.0.0.1:8000/v1"},
        "benchmarks.hard.judge": "local",
    }
    raw = paper(**changes)
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
    names = ("policy", "items@gsm8k", "generate@0-gsm8k")
    some = [unroll(STAGES, params.model_dump(mode="json"))[name] for name in names]
    few = needs_of(params, build_plan(params, stages=some))
    assert [n.key for n in few] == ["policy.model", "benchmarks.gsm8k.data"]


def test_the_command(small, monkeypatch):
    """Exit codes 0, 1 (does not fit) and 2 (bad input, one line); it writes nothing."""
    monkeypatch.chdir(small)
    monkeypatch.setenv("OPENAI_API_KEY", "do-not-print")

    def study(*arguments: str):
        return CliRunner().invoke(app, ["study", "small", "--scale", "paper", *arguments])

    before = sorted(small.rglob("*"))
    done = study("--dry-run", "--json", "--seeds", "1")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == 3
    done = study("--dry-run", "--gpu-memory", "24")
    assert done.exit_code == 1 and "FAIL train: " in done.stdout and "do-not-print" not in done.stdout
    for arguments, words in (
        (["--dry-run", "--assume", "gpu=2"], "expected NAME=VALUE; did you mean 'gpus'?"),
        (["--dry-run", "--with", "absent.yaml"], "absent.yaml: not found"),
        (["--with", "absent.yaml"], "absent.yaml: not found"),
        (["--gpus", "8"], "plan only; add --dry-run"),
        (["--dry-run", "--seeds", "0"], "seeds: expected 1 or more"),
    ):
        done = study(*arguments)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and words in done.stderr, (arguments, done.stderr)
    assert sorted(small.rglob("*")) == before


EVERY = [(name, scale) for name in names(ROOT / "studies") for scale in ("cpu", "paper")]


@pytest.fixture(scope="module")
def every() -> dict[tuple[str, str], StudyPlan]:
    """All studies at both scales, on one GPU and on eight, with sockets that refuse to be made."""

    def refuse(*_, **__):
        raise AssertionError("a plan asks no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.chdir(ROOT)
        found = {}
        for name, scale in EVERY:
            overlays, gpus = (["configs/params-8x80gb.yaml"], 8) if scale == "paper" else ([], 1)
            if scale in load_study(ROOT / "studies", name).scales:
                a = Assumptions(gpus=gpus)
                found[name, scale] = plan_study(ROOT, name, scale, overlays=overlays, assumptions=a)
        return found


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_overview_of_all_studies(every, scale):
    """A row per study and one for all: together they need no more than one after another, and no less than the most."""
    found = [plan for (_, s), plan in every.items() if s == scale]
    lines = render_overview(found).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [*(p.study.name for p in found), "all"]
    once = {key: n for plan in found for key, n in plan.once.items()}
    total = Totals.of(once.values())
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
    assert [c.name for c in found.cells] == list(found.study.cells_at(scale))
    assert found.failed == []
    assert 0 < found.shared.nodes <= found.apart.nodes
    for total in ("hours", "clock_hours", "sample_tokens", "train_tokens", "judge_calls", "judge_cost"):
        assert getattr(found.shared, total) <= getattr(found.apart, total)
    apart = Totals.of([n for cell in found.cells for n in cell.plan.nodes])
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
        assert set(plans[run.cell]) == select(stages, targets(runs, found.study.sources(scale).values()))
        for stage, key in keys(stages, run.params).items():
            if stage in plans[run.cell]:
                here = replace(plans[run.cell][stage])
                assert once.setdefault(key, here) == here, (run.cell, stage)
