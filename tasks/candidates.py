"""Node `candidates@s`: every scored response so far: Algorithm 1, line 3, D ← merge of D_0..D_s.

candidates@s = candidates@(previous of s) ∪ (sample@s ⋈ score@s)
"""

import pandas as pd

from larpo import tables
from larpo.errors import UserError
from tasks.frame.node import Node, command


def main(iteration: str) -> None:
    """Write data/candidates/ITERATION.parquet."""
    with Node("candidates", iteration) as node:
        sample_path, score_path = node["sample"], node["score"]
        responses, rewards = tables.read("responses", sample_path), tables.read("rewards", score_path)
        new = responses.merge(rewards, on="response_id", how="inner", validate="one_to_one")
        if not len(new) == len(responses) == len(rewards):
            raise UserError(
                f"{score_path}: {len(rewards)} rewards for {len(responses)} responses of {sample_path}, "
                f"{len(new)} match; run `dvc repro --force score@{iteration}`"
            )
        earlier = tables.read("candidates", node["candidates"], empty=True)
        frame = pd.concat([earlier, new], ignore_index=True) if len(earlier) else new
        tables.write(frame, "candidates", node.out("candidates"))
        node.rows(read=len(new) + len(earlier), written=len(frame))


if __name__ == "__main__":
    command(main)
