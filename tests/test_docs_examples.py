"""The examples in the documentation, taken from its pages and run against the registries they extend."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
import yaml

from larpo import tables
from larpo.benchmarks import BENCHMARKS, build_benchmark
from larpo.config.sections import EngineParams, SourceParams
from larpo.engines import ENGINES, Sampling, build_engine
from larpo.lists.recipes import RECIPES, Recipe
from larpo.load import check_params
from larpo.objectives import OBJECTIVES, ListBatch, build
from larpo.registry import own_code, own_modules
from larpo.rewards import REWARDS, build_reward
from larpo.sources.prompts import SOURCES, draw, is_held_out
from larpo.studies import expand, load_study
from tests.conftest import ROOT, tiny_params
from tests.larpo.lists.test_lists import build as build_lists
from tests.larpo.lists.test_lists import shown
from tests.test_docs import blocks


def module(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A page's code as the module that its first line names."""
    assert code.startswith(f"# {name.replace('.', '/')}.py\n")
    made = ModuleType(name)
    exec(compile(code, name, "exec"), made.__dict__)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def registered(page: Path, name: str) -> str:
    """`module:class` that a page's registry line gives to a name."""
    (target,) = re.findall(rf'`"{name}": "([\w.:]+)"`', page.read_text("utf-8"))
    return target


def test_objective_example(monkeypatch):
    """γ = 0.5 · (0.5, −0.5): the loss is 1 − (0.25 + 0.25); where policy and reference agree it is 1."""
    page = ROOT / "docs/objectives.md"
    (code,) = blocks(page, "## Add an objective")
    monkeypatch.setitem(OBJECTIVES.entries, "hinge", registered(page, "hinge"))
    module("larpo.objectives.hinge", code, monkeypatch)
    batch = ListBatch(
        torch.tensor([[-1.0, -2.0]]),
        torch.tensor([[-1.5, -1.5]]),
        torch.ones(1, 2),
        torch.tensor([[1.0, 0.0]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    objective = build("hinge", beta=0.5)
    assert (objective(batch).tolist(), objective.at_reference(batch).tolist()) == ([0.5], [1.0])


def test_reward_example(monkeypatch, tmp_path):
    page = ROOT / "docs/rewards.md"
    code, plain = blocks(page, "## Add a reward")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/brief.py").write_text(plain)
    monkeypatch.chdir(tmp_path)
    with own_code():
        function = build_reward("mine/brief.py:brief", {"per_character": 2.0})
    messages = [[{"role": "user", "content": "2 + 2 ="}]] * 2
    assert function.score(messages, [None] * 2, ["four", "no"])["reward"].tolist() == [-8.0, -4.0]
    monkeypatch.setitem(REWARDS.entries, "brief", registered(page, "brief"))
    module("larpo.rewards.brief", code, monkeypatch)
    reward = build_reward("brief", {})
    assert reward.score([[]] * 2, [None] * 2, ["four", "no"])["reward"].tolist() == [-4.0, -2.0]
    assert reward.facts()["reward"] == "brief" and reward.taken() == {}
    benchmark = {"items": 8, "options": {"rule": "final_number"}, "generate": {"max_new_tokens": 4}}
    check_params(tiny_params(score={"reward": "brief"}, benchmarks={"held_out": benchmark}))


def test_recipe_example(monkeypatch):
    (line,) = blocks(ROOT / "docs/lists.md", "## Add a recipe")
    ((name, recipe),) = eval(f"{{{line}}}", {"Recipe": Recipe}).items()
    monkeypatch.setitem(RECIPES.entries, name, recipe)
    made = build_lists([("a", 0.1), ("a", 0.9), ("a", 0.5), ("a", 0.7), ("a", 0.3)], recipe=name)
    assert [(reward, role) for _, reward, role in shown(made)] == [
        (0.9, "positive"),
        (0.5, "negative"),
        (0.3, "negative"),
        (0.1, "negative"),
    ]


def test_benchmark_example(monkeypatch, tmp_path):
    page = ROOT / "docs/extending.md"
    code, params = blocks(page, "## A benchmark")
    monkeypatch.chdir(tmp_path)
    asked = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "2 + 2", "answer": "4"}]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    monkeypatch.setitem(BENCHMARKS.entries, "contains", registered(page, "contains"))
    module("larpo.benchmarks.contains", code, monkeypatch)
    benchmark = build_benchmark(tiny_params(**yaml.safe_load(params)), "mine")
    items = benchmark.items()
    tables.check(items, "items", "example")
    outputs = pd.DataFrame(
        {
            "prompt_id": items["prompt_id"].repeat(2).to_numpy(),
            "temperature": [0.0, 1.0] * 2,
            "sample": [-1, 0] * 2,
            "turn": 0,
            "text": ["Paris.", "Lyon", "It is 4", "4"],
            "n_tokens": 2,
            "finish_reason": "stop",
        }
    )
    scored = outputs.join(benchmark.score(items, outputs))
    found = benchmark.aggregate(items, scored)
    assert found["greedy"]["accuracy"] == 1.0 and found["pass"]["1"]["value"] == 0.5


def test_engine_example(monkeypatch, tiny_policy):
    """Its greedy answers are those of the engine that caches and pads, and its seed decides its samples."""
    page = ROOT / "docs/extending.md"
    (code,) = blocks(page, "## An engine")
    monkeypatch.setitem(ENGINES.entries, "plain", registered(page, "plain"))
    module("larpo.engines.plain", code, monkeypatch)
    prompts = [[2, 7, 8, 1, 4], [3, 9, 1, 4]]
    plain, usual = (build_engine(EngineParams(name=n), str(tiny_policy), 0) for n in ("plain", "transformers"))
    greedy = [[many[0].token_ids for many in e.generate(prompts, Sampling(1, 0.0, 8), 0)] for e in (plain, usual)]
    assert greedy[0] == greedy[1]
    once, again, other = (plain.generate(prompts, Sampling(3, 1.0, 8), seed) for seed in (1, 1, 2))
    assert once == again != other


def test_source_example(monkeypatch):
    page = ROOT / "docs/extending.md"
    (code,) = blocks(page, "## A source of prompts")
    monkeypatch.setitem(SOURCES.entries, "squares", registered(page, "squares"))
    module("larpo.sources.squares", code, monkeypatch)
    params = SourceParams(source="squares", held_out=0.3)
    frame = draw(params, 20, 0, held_out=False)
    asked = [messages[-1]["content"] for messages in frame["messages"]]
    assert [str(int(text.split()[0]) ** 2) for text in asked] == frame["answer"].tolist()
    assert not any(is_held_out(params, messages) for messages in frame["messages"])


def test_study_example(tmp_path):
    (code,) = blocks(ROOT / "docs/studies.md", "## A study's file")
    shutil.copy(ROOT / "studies/cpu.yaml", tmp_path / "cpu.yaml")
    (tmp_path / "longer.yaml").write_text(code)
    runs = expand(load_study(tmp_path, "longer"), tmp_path, "cpu", 3)
    assert [(r.cell, r.seed, r.checked.sample.responses) for r in runs] == [
        (f"k{k}", seed, k) for k in (4, 8, 16) for seed in range(100, 103)
    ]


def test_benchmark_settings_are_those_that_each_benchmark_takes(tmp_path, monkeypatch):
    """The page's own section `benchmarks`, with files where it says that files are."""
    section = next(yaml.safe_load(b) for b in blocks(ROOT / "docs/benchmarks.md") if b.startswith("benchmarks:"))
    monkeypatch.chdir(tmp_path)
    for name in ("mixeval-hard/free-form.json", "gpt4_1106_preview/model_outputs.json", "df_gamed.csv"):
        file = Path("path/to") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    check_params(tiny_params(**section))
    assert set(section) == {"benchmarks", "judges"} and len(section["benchmarks"]) == 4


def test_every_example_works_as_own_code(monkeypatch, tmp_path):
    """The same files in a package of somebody's own, named by their dotted paths; no line in a registry."""
    places = {
        "brief": (REWARDS, "rewards", "## Add a reward", "Brief"),
        "hinge": (OBJECTIVES, "objectives", "## Add an objective", "hinge"),
        "contains": (BENCHMARKS, "extending", "## A benchmark", "Contains"),
        "plain": (ENGINES, "extending", "## An engine", "Plain"),
        "squares": (SOURCES, "extending", "## A source of prompts", "squares"),
    }
    package = tmp_path / "docs_examples_own"
    package.mkdir()
    for name, (_, page, heading, _) in places.items():
        (package / f"{name}.py").write_text(next(blocks(ROOT / f"docs/{page}.md", heading)))
    (line,) = blocks(ROOT / "docs/lists.md", "## Add a recipe")
    (package / "recipes.py").write_text(
        f"from larpo.lists.recipes import Recipe\nMINE = next(iter({{{line}}}.values()))\n"
    )
    monkeypatch.chdir(tmp_path)
    with own_code():
        for name, (registry, _, _, made) in places.items():
            assert registry.load(f"docs_examples_own.{name}:{made}").__name__ == made
        recipe = RECIPES.load("docs_examples_own.recipes:MINE")
        check_params(
            tiny_params(
                score={"reward": "docs_examples_own.brief:Brief"},
                train={"objective": "docs_examples_own.hinge:hinge", "learning_rate": 1e-3},
                lists={"recipe": "docs_examples_own.recipes:MINE"},
                benchmarks={
                    "held_out": {"items": 8, "options": {"rule": "exact_match"}, "generate": {"max_new_tokens": 4}}
                },
            )
        )
        assert set(own_modules()) == {f"docs_examples_own.{name}" for name in (*places, "recipes")}
    assert recipe.counts(tiny_params().lists) != (None, None)
    for name in [name for name in sys.modules if name.startswith("docs_examples_own")]:
        del sys.modules[name]
