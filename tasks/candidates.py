"""Node `candidates@s`: every scored response so far: Algorithm 1, line 3, D ← merge of D_0..D_s.

candidates@s = candidates@(previous of s) ∪ (sample@s ⋈ score@s)
"""

from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from larpo import tables
from larpo.errors import UserError
from tasks.frame.node import Node, command


def main(iteration: str) -> None:
    """Write data/candidates/ITERATION.parquet."""
    with Node("candidates", iteration) as node:
        sample_path, score_path = node["sample"], node["score"]
        responses = pa.concat_tables(tables.scan("responses", sample_path))
        rewards = pa.concat_tables(tables.scan("rewards", score_path))
        places = pc.index_in(responses["response_id"], rewards["response_id"])
        matched = len(responses) - places.null_count
        if not matched == len(responses) == len(rewards):
            raise UserError(
                f"{score_path}: {len(rewards)} rewards for {len(responses)} responses of {sample_path}, "
                f"{matched} match; run `dvc repro --force score@{iteration}`"
            )
        scored = rewards.drop_columns("response_id").take(places)
        new = pa.table([*responses.columns, *scored.columns], schema=tables.SCHEMAS["candidates"])
        earlier = tables.scan("candidates", node["candidates"], empty=True)
        rows = tables.write_parts(chain(earlier, [new]), "candidates", node.out("candidates"))
        node.rows(read=rows, written=rows)


if __name__ == "__main__":
    command(main)
