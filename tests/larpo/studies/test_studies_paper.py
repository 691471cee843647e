"""The studies at scale `paper` against what the paper states, and at scale `cpu` against what their pages say."""

from functools import cache
from typing import Any

import pytest

from larpo.studies import expand, load_study
from tests.conftest import ROOT

ALL = ("table2", "table3", "table4", "figure4a", "figure4b", "figure4c", "figure6")
GEMMA, MISTRAL, MATHSTRAL = "google/gemma-2-2b-it", "mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mathstral-7B-v0.1"

# (study, cell or None for all, dotted key, value): Section 4's tables and figures, Appendix for the settings.
STATED = [
    ("table2", None, "policy.model", "alignment-handbook/zephyr-7b-sft-full"),
    ("table2", None, "score.reward", "pairrm"),
    ("table2", "contrastive", "sample.responses", 10),
    ("table2", "contrastive", "lists", {"recipe": "top_bottom", "top": 1, "bottom": 3}),
    ("table2", "lambdarank", "lists", {"recipe": "top_bottom", "top": 2, "bottom": 2}),
    ("table2", "listmle", "lists", {"recipe": "top_bottom", "top": 2, "bottom": 2}),
    ("table2", "iterative_dpo", "sample.responses", 2),
    ("table2", "iterative_dpo_k10", "sample.responses", 10),
    ("table3", None, "policy.model", GEMMA),
    ("table3", None, "score.reward", "sequence_classification"),
    ("table3", None, "reward.model", "sfairXC/FsfairX-LLaMA3-RM-v0.1"),
    ("table3", None, "train.epochs", 2),
    ("table3", None, "benchmarks.alpaca.options.annotator", "alpaca_eval_gpt4_turbo_fn"),
    ("table3", "pairwise", "sample.responses", 2),
    ("table3", "contrastive", "sample.responses", 4),
    ("table3", "contrastive", "lists", {"recipe": "top_rest", "top": 1}),
    ("table3", "listmle", "lists", {"recipe": "top_bottom", "top": 2, "bottom": 2}),
    ("table4", None, "train.objective", "pairwise"),
    ("table4", None, "sample.responses", 2),
    ("table4", None, "prompts.draw", "same"),
    ("table6", None, "sample.responses", 20),
    ("table6", None, "train.learning_rate", 1e-7),
    ("table6", None, "lists", {"recipe": "random_correct_incorrect"}),
    ("figure2", None, "policy.model", MATHSTRAL),
    ("figure4a", None, "policy.model", MATHSTRAL),
    ("figure4a", None, "train.learning_rate", 2e-7),
    ("figure4a", None, "lists", {"positive": "correct"}),
    ("figure4b", None, "policy.model", MISTRAL),
    ("figure4c", None, "train.objective", "contrastive"),
    ("figure4c", None, "policy.model", MISTRAL),
    ("figure4c", None, "lists", {"recipe": "top_rest", "top": 1}),
    ("figure6", None, "policy.model", GEMMA),
]


@cache
def runs(study: str, scale: str) -> dict[str, Any]:
    """cell → parameters of its run with seed 0."""
    folder = ROOT / "studies"
    return {r.cell: r.checked for r in expand(load_study(folder, study), folder, scale, 1)}


def value(params: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        params = params[part] if isinstance(params, dict) else getattr(params, part)
    return params


@pytest.mark.parametrize(("study", "cell", "dotted", "expected"), STATED)
def test_what_the_paper_states(study, cell, dotted, expected):
    for name, params in runs(study, "paper").items():
        if cell in (None, name):
            found = value(params, dotted)
            if isinstance(expected, dict):
                found = {key: getattr(found, key) for key in expected}
            assert found == expected, (study, name)


@pytest.mark.parametrize("study", ALL)
def test_learning_rate_of_ultrafeedback_and_master_weights_that_can_hold_its_steps(study):
    for params in runs(study, "paper").values():
        assert params.train.learning_rate == (2e-7 if study == "figure4a" else 5e-7)
        assert params.policy.dtype == "float32", "a step of 5e-7 is lost in bfloat16's seven bits of mantissa"


def test_temperatures():
    """Table 2's base model 1.0; Figure 4c 1.0; Figure 4a 0.7 against 1.0; the sweeps one temperature per cell."""

    def of(study: str, cell: str, scale: str = "paper") -> set[float]:
        return {t for it in runs(study, scale)[cell].iterations.values() for t in it.temperatures}

    assert {t for cell in runs("table2", "paper") for t in of("table2", cell)} == {1.0}
    assert {t for cell in runs("figure4c", "paper") for t in of("figure4c", cell)} == {1.0}
    for scale in ("cpu", "paper"):
        assert [of("figure4a", c, scale) for c in ("random", "related", "high", "low")] == [{1.0}, {1.0}, {1.0}, {0.7}]
        for study in ("figure4b", "figure6"):
            swept = [of(study, cell, scale) for cell in runs(study, scale)]
            assert all(len(t) == 1 for t in swept) and sorted(swept, key=min) == swept and len(swept) == 5


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_only_what_a_study_compares_differs_between_its_cells(scale):
    """Figure 4a: negatives (and the low temperature); Figure 4c: k; Table 4: the memory."""
    allowed = {"figure4a": {"lists", "iterations"}, "figure4c": {"sample"}, "table4": {"lists"}}
    for study, sections in allowed.items():
        first, *others = (p.model_dump() for p in runs(study, scale).values())
        for other in others:
            assert {key for key in first if first[key] != other[key]} <= sections, study
    memories = [p.lists.memory for p in runs("table4", scale).values()]
    assert memories == ["current", "previous", "all"]


def test_offline_cells_draw_as_many_prompts_as_the_iterative_ones():
    """Table 2: three draws of 256 (20,000) prompts against one of 768 (60,000)."""
    for scale, drawn in (("cpu", 768), ("paper", 60_000)):
        for name, params in runs("table2", scale).items():
            if name != "sft":  # policy 3 is measured, and what leads up to it is drawn
                made, draws = "3", 0
                while made in params.iterations:
                    made, draws = params.iterations[made].previous, draws + 1
                assert params.prompts.per_iteration * draws == drawn, (scale, name)


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "studies").glob("[ft]*.yaml")))
def test_every_measure_is_of_a_policy_and_a_benchmark_that_the_run_has(name):
    study = load_study(ROOT / "studies", name)
    for scale in study.scales:
        for run in expand(study, ROOT / "studies", scale, 1):
            made = {
                f"data/evaluate/{p}-{b}.json" for p in run.checked.evaluate.policies for b in run.checked.benchmarks
            }
            made |= {f"data/evaluate/retrieval-{r}.json" for r in run.checked.retrieval}
            for source in study.sources(scale).values():
                assert source.file.replace("{policy}", run.policy or "") in made, (scale, run.cell, source.file)
