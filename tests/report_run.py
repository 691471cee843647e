"""A run's files as the nodes leave them, small and made up, for the tests of the report."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from larpo import tables
from larpo.benchmarks.held_out import HeldOut
from larpo.config.params import parse_params
from larpo.graph import read_stages, unroll
from larpo.hashing import digest, tree_hash

SCRIPT = "<script>document.body.innerHTML='gone'</script>"
GENERATE = {"samples": 4, "temperatures": [1.0], "max_new_tokens": 32}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def params(iterations: int = 2, benchmarks: tuple[str, ...] = ("held_out",), **changes) -> dict:
    """params.yaml of a chain of `iterations` iterations; `changes` replace whole sections."""
    return {
        "seed": 7,
        "policy": {"model": "pypi:some-model"},
        "iterations": {str(s): {"previous": str(s - 1), "temperatures": [0.7]} for s in range(1, iterations + 1)},
        "prompts": {"tasks": [{"name": "chain_sum"}], "per_iteration": 6},
        "sample": {"responses": 4, "max_new_tokens": 32},
        "score": {"reward": "final_number"},
        "lists": {"recipe": "top_bottom", "top": 1, "bottom": 1},
        "train": {"learning_rate": 1e-5},
        "evaluate": {"policies": [str(s) for s in range(iterations + 1)]},
        "benchmarks": {b: {"benchmark": "held_out", "items": 10, "generate": GENERATE} for b in benchmarks},
    } | changes


def prompt(text: str) -> dict:
    return {
        "prompt_id": digest("prompt", text),
        "source": "reasoning_gym/chain_sum",
        "messages": [{"role": "user", "content": text}],
        "answer": "42",
        "solution": None,
    }


def write_manifests(settings: dict) -> None:
    """A record for every node that dvc.yaml declares, of the inputs and outputs that are there."""
    for stage in unroll(read_stages(), settings).values():
        *outputs, path = sorted(stage.outs, key=lambda out: out.endswith(".manifest.json"))
        step0 = {"step0_loss": 0.693148, "step0_expected": 0.693147} if stage.kind == "train" else {}
        record = {
            "node": stage.name,
            "inputs": {p: tree_hash(p) for p in stage.deps if p.startswith("data/") and Path(p).exists()},
            "params": {},
            "seed": 11,
            "outputs": {p: tree_hash(p) for p in outputs if Path(p).exists()},
            "rows": {"in": 24, "out": 24, "dropped": {"truncated": 1}},
            "notes": step0,
            "git": {"commit": COMMIT, "dirty": False},
            "packages": {"python": "3.11.2", "torch": "2.13.0"},
            "hardware": {"system": "Linux 6", "machine": "x86_64", "cores": 2, "memory_bytes": 8 << 30, "gpus": []},
            "started": "2030-01-01T00:00:00+00:00",
            "seconds": 110.0,
            "resumed": False,
            "peak_memory_bytes": 1 << 30,
        }
        record["hardware"]["cpu"] = "A CPU"
        if stage.kind != "report":
            Path(path).write_text(json.dumps(record), "utf-8")


def evaluations(correct: np.ndarray, greedy: np.ndarray) -> pd.DataFrame:
    """(P,) correct samples of four and (P,) greedy outcomes as an `evaluations` table."""
    rows = []
    for i, (c, g) in enumerate(zip(correct, greedy, strict=True)):
        item = prompt(f"held out question {i}")
        for sample in range(-1, 4):
            row = {"prompt_id": item["prompt_id"], "sample": sample, "turn": 0, "judgement": None, "answer": "42"}
            row |= {"temperature": 0.0 if sample < 0 else 1.0, "messages": item["messages"], "text": f"It is {i}."}
            row |= {"n_tokens": 5 + i + sample, "finish_reason": "stop", "parsed": str(i)}
            rows.append(row | {"score": float(g) if sample < 0 else float(sample < c)})
    return pd.DataFrame(rows)


def build(settings: dict, seed: int = 0, steps: int = 6, manifests: bool = True) -> None:
    """Write params.yaml and data/ of a run into the working directory, a little better in each iteration."""
    Path("params.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    checked, rng = parse_params(settings), np.random.default_rng(seed)
    empty = tables.SCHEMAS["candidates"].empty_table().to_pandas()
    memory = empty
    Path("data/policy/0").mkdir(parents=True)
    Path("data/policy/0/config.json").write_text("{}")
    Path("data/reward").mkdir()
    Path("data/reward/reward.json").write_text('{"kind": "rules"}')
    tables.write(empty, "candidates", "data/candidates/0.parquet")
    for s in checked.iterations:
        asked = pd.DataFrame([prompt(f"training question {s} {i}") for i in range(6)])
        tables.write(asked, "prompts", f"data/prompts/{s}.parquet")
        right = rng.random(24) < 0.3 + 0.2 * int(s)
        rows = [
            {
                "prompt_id": asked["prompt_id"][i // 4],
                "response_id": digest("response", s, i),
                "iteration": int(s),
                "temperature": 0.7,
                "seed": i,
                "text": f"The answer is {42 if right[i] else i}. {SCRIPT if i % 4 == 0 else ''}",
                "prompt_token_ids": [1, 2],
                "token_ids": list(range(3 + i % 5)),
                "finish_reason": "length" if i % 11 == 10 else "stop",
                "origin": "policy",
                "logp": -9.5,
                "reward": float(right[i]),
                "correct": bool(right[i]),
                "reward_name": "final_number",
            }
            for i in range(24)
        ]
        new = pd.DataFrame(rows)
        tables.write(new[tables.SCHEMAS["responses"].names], "responses", f"data/sample/{s}.parquet")
        tables.write(new[tables.SCHEMAS["rewards"].names], "rewards", f"data/score/{s}.parquet")
        memory = pd.concat([memory, new], ignore_index=True) if len(memory) else new
        tables.write(memory, "candidates", f"data/candidates/{s}.parquet")
        ranked = new.sort_values(["prompt_id", "reward"], ascending=[True, False], kind="stable")
        ends = pd.concat([ranked.groupby("prompt_id").head(1), ranked.groupby("prompt_id").tail(1)])
        ends = ends.sort_values(["prompt_id", "reward"], ascending=[True, False], kind="stable")
        ends = ends.assign(rank=ends.groupby("prompt_id").cumcount())
        ends["role"] = np.where(ends["rank"] == 0, "positive", "negative")
        tables.write(ends[tables.SCHEMAS["lists"].names], "lists", f"data/lists/{s}.parquet")
        reference = ends[["prompt_id", "response_id"]].assign(reference_logp=-9.5, n_tokens=4, mismatched_logp=None)
        tables.write(reference, "reference", f"data/reference/{s}.parquet")
        Path(f"data/policy/{s}").mkdir(parents=True)
        Path(f"data/policy/{s}/config.json").write_text(json.dumps({"policy": s}))
        curves = Path(f"data/train/{s}/plots/metrics")
        curves.mkdir(parents=True)
        for metric, start, slope in (("loss", 0.693147, -0.03), ("reward_accuracy", 0.5, 0.03)):
            lines = [f"{i}\t{start + slope * i + 0.01 * rng.standard_normal()}" for i in range(1, steps + 1)]
            (curves / f"{metric}.tsv").write_text("\n".join([f"step\t{metric}", *lines]) + "\n")
    for b in checked.benchmarks:
        asked = f"data/items/{b}.parquet"
        held_out = pd.DataFrame([prompt(f"held out question {i}") for i in range(checked.benchmarks[b].items)])
        tables.write(held_out.drop(columns="solution").assign(meta=None), "items", asked)
        for p in checked.evaluate.policies:
            level = 0.25 + 0.15 * int(p)
            items = checked.benchmarks[b].items
            frame = evaluations(rng.binomial(4, level, items), rng.random(items) < level + 0.1)
            stem = f"data/evaluate/{p}-{b}"
            tables.write(frame, "evaluations", f"{stem}.parquet")
            metrics = {"benchmark": b, "policy": p, **HeldOut(checked, checked.benchmarks[b]).aggregate(frame, frame)}
            Path(f"{stem}.json").write_text(json.dumps(metrics), "utf-8")
            outputs = frame.assign(prompt_token_ids=[[1]] * len(frame), token_ids=[[2]] * len(frame))
            tables.write(outputs[tables.SCHEMAS["outputs"].names], "outputs", f"data/generate/{p}-{b}.parquet")
    if manifests:
        write_manifests(checked.model_dump(mode="json"))
