"""Node `prompts@s`: the M prompts of iteration s, none of them held out for evaluation."""

from __future__ import annotations

from larpo import tables
from larpo.errors import UserError, at
from larpo.hashing import seed_of
from larpo.rewards import build_reward
from larpo.sources import provenance
from larpo.sources.prompts import draw
from tasks.frame.node import Node, command


def main(iteration: str) -> None:
    """Write data/prompts/ITERATION.parquet."""
    with Node("prompts", iteration) as node:
        params = node.params
        # `draw: same` leaves the iteration out of the seed, so every iteration sees the same prompts.
        node.seed = seed_of(params.seed, "prompts", iteration if params.prompts.draw == "fresh" else "same")
        with at("prompts"):
            frame = draw(params.prompts, params.prompts.per_iteration, node.seed, held_out=False)
        reward = build_reward(params.score.reward, params.score.options)
        if reward.needs_answers and frame["answer"].isna().any():
            raise UserError(
                f"params.yaml: score.reward: {params.score.reward} needs answers, but "
                f"{int(frame['answer'].isna().sum())} of {len(frame)} prompts have none; set prompts.answer_field"
            )
        tables.write(frame, "prompts", node.out("prompts"))
        node.note(sources=provenance.prompts(params.prompts))
        node.rows(read=len(frame), written=len(frame))


if __name__ == "__main__":
    command(main)
