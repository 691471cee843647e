"""Node `sample@s`: k responses per prompt from the behaviour policy at the iteration's temperatures.

Algorithm 1, line 2: y_1..y_k ~ π_β(·|x), with π_β the policy this iteration starts from.
"""

from __future__ import annotations

import pandas as pd

from larpo import tables
from larpo.engines import Sampling
from larpo.hashing import digest, seed_of
from tasks.generator import Generator
from tasks.node import Node, command, load_params


def main(iteration: str) -> None:
    """Write data/sample/ITERATION.parquet."""
    params = load_params()
    this = params.iterations[iteration]
    policy, prompts_path = f"data/policy/{this.previous}", f"data/prompts/{iteration}.parquet"
    out = f"data/sample/{iteration}.parquet"
    seed = seed_of(params.seed, "sample", iteration)
    with Node(
        "sample", iteration, params,
        uses=["seed", "sample", "engine", f"iterations.{iteration}"],
        inputs=[policy, prompts_path], outputs=[out],
        manifest=f"data/sample/{iteration}.manifest.json", seed=seed,
    ) as node:  # fmt: skip
        prompts = tables.read("prompts", prompts_path)
        generator = Generator(node, policy, params.engine, seed)
        n = params.sample.responses // len(this.temperatures)
        parts = []
        for order, temperature in enumerate(this.temperatures):
            sampling = Sampling(n, temperature, params.sample.max_new_tokens, params.sample.top_p)
            part = generator.run(prompts, sampling, f"{order}-t{temperature:g}")
            parts.append(part.assign(temperature=temperature, index=part["index"] + order * n))
        frame = pd.concat(parts, ignore_index=True).assign(iteration=int(iteration))
        frame["response_id"] = [
            digest("response", prompt, iteration, temperature, index, list(map(int, ids)))
            for prompt, temperature, index, ids in zip(
                frame["prompt_id"], frame["temperature"], frame["index"], frame["token_ids"], strict=True
            )
        ]
        order = {p: i for i, p in enumerate(prompts["prompt_id"])}
        frame = frame.assign(o=frame["prompt_id"].map(order)).sort_values(["o", "index"], kind="stable")
        tables.write(frame[tables.SCHEMAS["responses"].names], "responses", node.out(out))
        tokens = int(frame["token_ids"].map(len).sum())
        node.note(tokens=tokens, truncated=int((frame["finish_reason"] == "length").sum()))
        node.rows(read=len(prompts), written=len(frame))


if __name__ == "__main__":
    command(main)
