"""Node `candidates@s`: every scored response so far: Algorithm 1, line 3, D ← merge of D_0..D_s.

candidates@s = candidates@(previous of s) ∪ (sample@s ⋈ score@s)
"""

from __future__ import annotations

import pandas as pd

from larpo import tables
from larpo.errors import UserError
from tasks.frame.node import Node, command, load_params


def main(iteration: str) -> None:
    """Write data/candidates/ITERATION.parquet."""
    params = load_params()
    previous = params.entry("iterations", iteration).previous
    sample_path, score_path = f"data/sample/{iteration}.parquet", f"data/score/{iteration}.parquet"
    memory = f"data/candidates/{previous}.parquet"
    out = f"data/candidates/{iteration}.parquet"
    with Node(
        "candidates",
        iteration,
        params,
        uses=[f"iterations.{iteration}"],
        inputs=[sample_path, score_path, memory],
        outputs=[out],
        manifest=f"data/candidates/{iteration}.manifest.json",
    ) as node:
        responses, rewards = tables.read("responses", sample_path), tables.read("rewards", score_path)
        new = responses.merge(rewards, on="response_id", how="inner", validate="one_to_one")
        if not len(new) == len(responses) == len(rewards):
            raise UserError(
                f"{score_path}: {len(rewards)} rewards for {len(responses)} responses of {sample_path}, "
                f"{len(new)} match; run `dvc repro --force score@{iteration}`"
            )
        earlier = tables.read("candidates", memory, empty=True)
        frame = pd.concat([earlier, new], ignore_index=True) if len(earlier) else new
        tables.write(frame, "candidates", node.out(out))
        node.rows(read=len(new) + len(earlier), written=len(frame))


if __name__ == "__main__":
    command(main)
