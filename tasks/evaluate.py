"""Node `evaluate@POLICY-BENCHMARK`: one benchmark on one checkpoint, every raw output kept."""

from __future__ import annotations

import pandas as pd

from larpo import tables
from larpo.benchmarks import build_benchmark
from larpo.engines import Sampling
from larpo.hashing import seed_of
from tasks.generate import Generator
from tasks.node import Node, command, load_params, write_json


def main(policy: str, benchmark: str) -> None:
    """Write data/evaluate/POLICY-BENCHMARK.parquet and its metrics as .json."""
    params = load_params()
    bench = build_benchmark(params, benchmark)
    entry = params.benchmarks[benchmark]
    checkpoint, stem = f"data/policy/{policy}", f"data/evaluate/{policy}-{benchmark}"
    # The same seed for every policy: checkpoints meet the same items and the same random draws.
    seed = seed_of(params.seed, "evaluate", benchmark)
    with Node(
        "evaluate", f"{policy}-{benchmark}", params,
        uses=["seed", "engine", "prompts", "score", f"benchmarks.{benchmark}"],
        inputs=[checkpoint], outputs=[f"{stem}.parquet", f"{stem}.json"],
        manifest=f"{stem}.manifest.json", seed=seed,
    ) as node:  # fmt: skip
        items = bench.items()
        generator = Generator(node, checkpoint, params.engine, seed)
        greedy = generator.run(items, Sampling(1, 0.0, entry.max_new_tokens), "greedy")
        # The order of a source may mean something (easy items first); an id is a hash, so its order does not.
        chosen = set(sorted(items["prompt_id"])[: entry.sampled_items])
        sampled = generator.run(
            items[items["prompt_id"].isin(chosen)],
            Sampling(entry.samples, entry.temperature, entry.max_new_tokens),
            f"t{entry.temperature:g}",
        )
        frame = pd.concat(
            [
                greedy.assign(sample=-1, temperature=0.0),
                sampled.assign(sample=sampled["index"], temperature=entry.temperature),
            ],
            ignore_index=True,
        )
        frame = pd.concat([frame, bench.score(items, frame)], axis=1)
        frame["n_tokens"] = frame["token_ids"].map(len)
        frame = frame.merge(items[["prompt_id", "messages", "answer"]], on="prompt_id", validate="many_to_one")
        order = {p: i for i, p in enumerate(items["prompt_id"])}
        frame = frame.assign(o=frame["prompt_id"].map(order)).sort_values(["o", "sample"], kind="stable")
        frame = frame[tables.SCHEMAS["evaluations"].names].reset_index(drop=True)
        tables.write(frame, "evaluations", node.out(f"{stem}.parquet"))
        metrics = {"benchmark": benchmark, "policy": policy, **bench.aggregate(frame)}
        write_json(node.out(f"{stem}.json"), metrics)
        node.rows(read=len(items), written=len(frame))


if __name__ == "__main__":
    command(main)
