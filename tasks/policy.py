"""Node `policy`: policy 0 as a safetensors checkpoint with its tokenizer and chat template.

It also writes the memory that the first iteration starts from, which is empty.
"""

import pandas as pd

from larpo import tables
from larpo.models.initial import fetch_initial_policy, initial_checkpoint
from tasks.frame.node import Node, command


def main() -> None:
    """Write data/policy/0 and the empty data/candidates/0.parquet."""
    with Node("policy") as node:
        params = node.params.policy
        checkpoint = node.checkpoints["policy.model"] = initial_checkpoint(params, node.scratch)
        facts = fetch_initial_policy(params, node.out("policy"), checkpoint)
        node.note(**facts)
        empty = pd.DataFrame(columns=tables.SCHEMAS["candidates"].names)
        tables.write(empty, "candidates", node.out("candidates"))


if __name__ == "__main__":
    command(main)
