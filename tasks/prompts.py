"""Node `prompts@s`: the M prompts of iteration s, none of them held out for evaluation."""

import pandas as pd

from larpo import tables
from larpo.benchmarks import build_benchmark
from larpo.config.params import Params
from larpo.errors import at
from larpo.hashing import seed_of
from larpo.rewards import check_answers, parts
from larpo.sources.contamination import draw_apart
from tasks.frame.node import Node, command, say_repeated


def main(iteration: str) -> None:
    """Write data/prompts/ITERATION.parquet."""
    with Node("prompts", iteration) as node:
        params = node.params
        # `draw: same` leaves the iteration out of the seed, so every iteration sees the same prompts.
        node.seed = seed_of(params.seed, "prompts", iteration if params.prompts.draw == "fresh" else "same")
        frame, dropped = draw_apart(params.prompts, node.seed, lambda: _items(params))
        check_answers(parts(params.score), frame, "prompts")
        if params.reward.model is not None:  # a head on a policy reads prompts as the policy does
            from larpo.rewards.checkpoint import check_template, reward_checkpoint

            check_template(params.reward, reward_checkpoint(params.reward, None, node.scratch), frame["messages"])
        say_repeated(node, dropped, params.prompts)
        tables.write(frame, "prompts", node.out("prompts"))
        own = [m[0]["role"] == "system" and m[0]["content"] != params.prompts.system for m in frame["messages"]]
        if any(own):
            node.note(own_system_messages=sum(own))
        node.rows(read=len(frame) + sum(dropped.values()), written=len(frame), dropped=dropped)


def _items(params: Params) -> dict[str, pd.DataFrame]:
    """What every benchmark asks, made as its own node makes it."""
    found = {}
    for name in params.benchmarks:
        with at(f"benchmarks.{name}"):
            found[name] = build_benchmark(params, name).items()
    return found


if __name__ == "__main__":
    command(main)
