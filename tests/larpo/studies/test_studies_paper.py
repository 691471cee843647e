"""The studies at scale `paper` against what the paper states, and at scale `cpu` against what their pages say."""

from functools import cache
from typing import Any

import pytest

from larpo.hashing import digest
from larpo.studies import expand, load_study
from larpo.studies.expand import names
from tests.conftest import ROOT

HOME = ROOT / "studies"
GEMMA, MISTRAL, MATHSTRAL = "google/gemma-2-2b-it", "mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mathstral-7B-v0.1"
PAIRRM, FSFAIRX, LLAMA3 = "llm-blender/PairRM", "sfairXC/FsfairX-LLaMA3-RM-v0.1", "alpaca_eval_llama3_70b_fn"
TOP1_BOTTOM3, TWO_TWO = ({"recipe": "top_bottom", "top": top, "bottom": b} for top, b in ((1, 3), (2, 2)))

# (study, cells by their first letters, dotted key, value): Sections 4 to 6 and Appendices B, E and H.
STATED = [
    ("table2", "contrastive", "policy.model", "alignment-handbook/zephyr-7b-sft-full"),
    ("table2", "instruct_contrastive", "policy.model", MISTRAL),
    ("table2", "contrastive", "reward.model", PAIRRM),
    ("table2", "iterative_dpo", "reward.model", PAIRRM),
    ("table2", "fsfairx", "reward.model", FSFAIRX),
    ("table2", "instruct_fsfairx", "reward.model", FSFAIRX),
    ("table2", "fsfairx", "lists.memory", "all"),
    ("table2", "fsfairx", "prompts.draw", "same"),
    ("table2", "contrastive", "sample.responses", 10),
    ("table2", "contrastive", "lists", TOP1_BOTTOM3),
    ("table2", "instruct_contrastive", "lists", TOP1_BOTTOM3),
    ("table2", "lambdarank", "lists", TWO_TWO),
    ("table2", "fsfairx_listmle", "lists", TWO_TWO),
    ("table2", "rdpo", "policy.model", "princeton-nlp/Mistral-7B-Base-SFT-RDPO"),
    ("table2", "instruct_simpo", "policy.model", "princeton-nlp/Mistral-7B-Instruct-SimPO"),
    ("table2", "simpo", "evaluate.policies", ["0"]),  # judged, not trained
    ("table2", "", "benchmarks.alpaca.generate.temperature", 0.7),
    ("table3", "pairwise", "policy.model", GEMMA),
    ("table3", "mistral", "policy.model", MISTRAL),
    ("table3", "", "reward.model", FSFAIRX),
    ("table3", "", "train.epochs", 2),
    ("table3", "", "benchmarks.alpaca.options.annotator", "alpaca_eval_gpt4_turbo_fn"),
    ("table3", "", "benchmarks.alpaca_llama3.options.annotator", LLAMA3),
    ("table3", "", "lists.memory", "current"),
    ("table3", "pairwise", "sample.responses", 2),
    ("table3", "contrastive", "lists", {"recipe": "top_rest", "top": 1}),
    ("table3", "mistral_contrastive", "sample.responses", 4),
    ("table3", "listmle", "lists", TWO_TWO),
    ("table3", "mistral_lambdarank", "lists", TWO_TWO),
    ("table4", "", "train.objective", "pairwise"),
    ("table4", "", "prompts.draw", "same"),
    ("table4", "", "policy.model", GEMMA),
    ("table4", "", "benchmarks.alpaca_llama3.options.annotator", LLAMA3),
    ("table4", "all", "sample.responses", 2),
    ("table4", "diverse", "sample.responses", 4),
    ("table6", "", "policy.model", MISTRAL),
    ("table6", "", "sample.responses", 20),
    ("table6", "", "train.learning_rate", 1e-7),
    ("table6", "", "train.epochs", 2),
    ("table6", "sft_dpo", "evaluate.policies", ["1"]),
    ("table6", "", "lists", {"recipe": "random_correct_incorrect"}),
    ("table6_math", "", "train.epochs", 1),
    ("table6_math", "sft_dpo", "evaluate.policies", ["4"]),
    ("table6_math", "", "benchmarks.math.items", None),  # all 5,000
    ("figure2", "", "policy.model", MATHSTRAL),
    ("figure4a", "", "policy.model", MATHSTRAL),
    ("figure4a", "", "train.learning_rate", 2e-7),
    ("figure4a", "", "lists", {"positive": "correct"}),
    ("figure4b", "", "policy.model", MISTRAL),
    ("figure4b", "", "benchmarks.alpaca_llama3.options.annotator", LLAMA3),
    ("figure4c", "", "train.objective", "contrastive"),
    ("figure4c", "", "policy.model", MISTRAL),
    ("figure4c", "", "lists", {"recipe": "top_rest", "top": 1}),
    ("figure5", "mathstral", "policy.model", MATHSTRAL),
    ("figure5", "mistral", "policy.model", MISTRAL),
    ("figure6", "", "policy.model", GEMMA),
]
METAMATH = {"learning_rate": 5e-6, "epochs": 3, "examples_per_step": 128, "schedule": "cosine", "warmup_ratio": 0.03}
METAMATH |= {"max_length": 2048}


@cache
def runs(study: str, scale: str) -> dict[str, Any]:
    """cell → parameters of its run with the first seed."""
    return {r.cell: r.checked for r in expand(load_study(HOME, study), HOME, scale, 1)}


def value(params: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        params = params[part] if isinstance(params, dict) else getattr(params, part)
    return params


@pytest.mark.parametrize(("study", "cell", "dotted", "expected"), STATED)
def test_what_the_paper_states(study, cell, dotted, expected):
    chosen = {name: params for name, params in runs(study, "paper").items() if name.startswith(cell)}
    assert chosen
    for name, params in chosen.items():
        found = value(params, dotted)
        if isinstance(expected, dict):
            found = {key: getattr(found, key) for key in expected}
        assert found == expected, (study, name)


@pytest.mark.parametrize("study", ["table6", "table6_math"])
def test_sft_is_metamaths(study):
    for params in runs(study, "paper").values():
        assert {key: getattr(params.sft["base"], key) for key in METAMATH} == METAMATH


def test_the_papers_tables_stand_beside_ours():
    """Every printed number of Tables 2, 3, 4, 6 and 7: rows × columns, and three of them by hand."""
    counts = {"table2": 32 * 4, "table3": 10 * 6, "table4": 4 * 2, "table6": 3 * 4, "table6_math": 3 * 4}
    studies = {name: load_study(HOME, name) for name in counts}
    for name, count in counts.items():
        assert sum(len(cell.reported) for cell in studies[name].cells.values()) == count, name
    assert studies["table2"].cells["instruct_fsfairx_contrastive"].reported["second"] == 53.8
    assert studies["table3"].cells["mistral_listmle"].reported["llama3_win"] == 56.73
    assert studies["table6_math"].cells["sft_dpo"].reported["recall100"] == 68.46


@pytest.mark.parametrize("study", ["table2", "table3", "table4", "figure4a", "figure4b", "figure4c", "figure6"])
def test_learning_rate_of_ultrafeedback_and_master_weights_that_can_hold_its_steps(study):
    for params in runs(study, "paper").values():
        assert params.train.learning_rate == (2e-7 if study == "figure4a" else 5e-7)
        assert params.policy.dtype == "float32", "a step of 5e-7 is lost in bfloat16's seven bits of mantissa"


def temperatures(study: str, cell: str, scale: str = "paper") -> set[float]:
    return {t for it in runs(study, scale)[cell].iterations.values() for t in it.temperatures}


def test_temperatures():
    """Table 2: base 1.0, instruct 0.8; Table 4: 1.0, or 1.0 and 0.5; Figure 4a: 0.7 against 1.0; sweeps: 0.7 to 1.4."""
    assert temperatures("table2", "lambdarank") == {1.0} and temperatures("table2", "instruct_lambdarank") == {0.8}
    assert temperatures("table4", "all") == {1.0} and temperatures("table4", "diverse") == {1.0, 0.5}
    assert {t for cell in runs("figure4c", "paper") for t in temperatures("figure4c", cell)} == {1.0}
    assert [temperatures("figure4a", c) for c in ("random", "related", "high", "low")] == [{1.0}, {1.0}, {1.0}, {0.7}]
    for study in ("figure4b", "figure6"):
        swept = [temperatures(study, cell) for cell in runs(study, "paper")]
        assert all(len(t) == 1 for t in swept) and {t for one in swept for t in one} == {0.7, 0.8, 0.9, 1.0, 1.2, 1.4}
        assert len(runs(study, "cpu")) == 3


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_only_what_a_study_compares_differs_between_its_cells(scale):
    """Figure 4a: negatives (and, at paper, the low temperature); Figure 4c: k; Table 4: memory and the control's k."""
    allowed = {"figure4a": {"lists"}, "figure4c": {"sample"}, "table4": {"lists", "sample", "iterations"}}
    allowed["figure4a"] |= {"iterations"} if scale == "paper" else set()
    for study, sections in allowed.items():
        first, *others = (p.model_dump() for name, p in runs(study, scale).items() if name != "sft")
        for other in others:
            assert {key for key in first if first[key] != other[key]} <= sections, study
    memories = ["current", "previous", "all"]
    assert [runs("table4", scale)[memory].lists.memory for memory in memories] == memories


def test_offline_cells_draw_as_many_prompts_and_train_as_many_steps_as_the_iterative_ones():
    """Table 2 at scale cpu: three draws of 768 against one of 2,304."""
    for name, params in runs("table2", "cpu").items():
        if name != "sft":  # policy 3 is measured, and what leads up to it is drawn
            made, draws = "3", 0
            while made in params.iterations:
                made, draws = params.iterations[made].previous, draws + 1
            assert params.prompts.per_iteration * draws == 2304, name


def test_arms_that_train_alike_are_marked():
    """Over all studies of a scale: equal parameters, benchmarks apart, with a policy that an iteration made."""
    apart = {"evaluate", "benchmarks", "judges", "retrieval", "best_of_n", "report"}
    for scale in ("cpu", "smol", "paper"):
        alike: dict[str, list[tuple[str, str | None]]] = {}
        for name in names(HOME):
            study = load_study(HOME, name)
            for run in expand(study, HOME, scale, 1) if scale in study.scales else []:
                if set(run.checked.evaluate.policies) & set(run.checked.iterations):
                    key = digest(run.checked.model_dump(mode="json", exclude=apart))
                    marked = study.cells[run.cell].same_as.get(scale)
                    alike.setdefault(key, []).append((f"{name}/{run.cell}", marked))
        for arms in alike.values():
            first = [cell for cell, marked in arms if marked is None]
            assert len(first) == 1, arms
            assert all(marked in (None, first[0]) for _, marked in arms), arms


@pytest.mark.parametrize("name", names(HOME))
def test_every_measure_is_of_a_policy_and_a_benchmark_that_the_run_has(name):
    study = load_study(HOME, name)
    for scale in study.scales:
        for run in expand(study, HOME, scale, 1):
            made = {
                f"data/evaluate/{p}-{b}.json" for p in run.checked.evaluate.policies for b in run.checked.benchmarks
            }
            made |= {f"data/evaluate/retrieval-{r}.json" for r in run.checked.retrieval} | {"report/hardness.json"}
            made |= {f"data/evaluate/best_of_n-{b}.json" for b in run.checked.best_of_n}
            for source in [s for s in study.sources(scale).values() if s.file]:
                for policy in source.policies or [run.policy or ""]:
                    assert source.file.replace("{policy}", policy) in made, (scale, run.cell, source.file)
