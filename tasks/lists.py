"""Node `lists@s`: the ordered lists Y_x that iteration s trains on (Section 3.3)."""

from __future__ import annotations

from larpo import tables
from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.lists import build_lists
from tasks.node import Node, command, load_params


def main(iteration: str) -> None:
    """Write data/lists/ITERATION.parquet."""
    params = load_params()
    source = f"data/candidates/{iteration}.parquet"
    out = f"data/lists/{iteration}.parquet"
    seed = seed_of(params.seed, "lists", iteration)
    with Node(
        "lists", iteration, params, uses=["seed", "lists"], inputs=[source], outputs=[out],
        manifest=f"data/lists/{iteration}.manifest.json", seed=seed,
    ) as node:  # fmt: skip
        window = [int(s) for s in params.memory_window(iteration)]
        candidates = tables.read("candidates", source)
        inside = candidates[candidates["iteration"].isin(window)]
        built = build_lists(inside, params.lists, seed)
        if built.lists.empty:
            raise UserError(
                f"{source}: no prompt makes a list ({built.dropped_prompts or built.dropped_responses}); the reward "
                "never differs within a prompt: take easier prompts, more responses, or another temperature"
            )
        tables.write(built.lists, "lists", node.out(out))
        outside = len(candidates) - len(inside)
        dropped = {**built.dropped_responses, **({"outside_memory": outside} if outside else {})}
        unused = len(inside) - sum(built.dropped_responses.values()) - len(built.lists)
        node.rows(read=len(candidates), written=len(built.lists), dropped={**dropped, "not_chosen": unused})
        node.note(
            lists=int(built.lists["prompt_id"].nunique()),
            prompts=int(inside["prompt_id"].nunique()),
            prompts_without_list=built.dropped_prompts,
            window=window,
        )


if __name__ == "__main__":
    command(main)
