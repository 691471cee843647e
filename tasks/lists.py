"""Node `lists@s`: the ordered lists Y_x that iteration s trains on (Section 3.3)."""

from larpo import tables
from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.lists.negatives import related
from larpo.lists.pool import read_pool
from larpo.lists.recipes import build_lists
from larpo.workspace.progress import say
from tasks.frame.node import Node, command


def main(iteration: str) -> None:
    """Write data/lists/ITERATION.parquet."""
    with Node("lists", iteration) as node:
        params = node.params
        window = params.memory_window(iteration)
        # One fixed preference set is one draw of lists, the same in every iteration that passes over it.
        node.seed = seed_of(params.seed, "lists", window[0] if params.lists.memory == "first" else iteration)
        source = node["candidates"]
        candidates = read_pool(source)
        inside = candidates.of([int(s) for s in window])
        similar = None
        if params.lists.negatives == "related":
            similar = related(tables.read("prompts", node["prompts"]), params.lists.related_model)
        built = build_lists(inside, params.lists, node.seed, similar)
        if built.lists.empty:
            raise UserError(
                f"{source}: no prompt makes a list ({built.dropped_prompts or built.dropped_responses}); the reward "
                "never differs within a prompt: take easier prompts, more responses, or another temperature"
            )
        tables.write(built.lists, "lists", node.out("lists"))
        outside = len(candidates.rows) - len(inside.rows)
        dropped = {**built.dropped_responses, **({"outside_memory": outside} if outside else {})}
        # A response to another prompt may stand in several lists: in + reused = out + dropped.
        used = built.lists["response_id"].nunique()
        unused = len(inside.rows) - sum(built.dropped_responses.values()) - used
        node.rows(read=len(candidates.rows), written=len(built.lists), dropped={**dropped, "not_chosen": unused})
        made = int(built.lists["prompt_id"].nunique())
        if 2 * sum(built.cut_off.values()) > made:
            only, alone = (built.cut_off.get(f"lists_{how}_cut_off", 0) for how in ("all", "ranked_by"))
            say(
                f"{node.stage}: of {made} lists {only} hold only responses that were cut off, {alone} are ranked by "
                "that alone; raise sample.max_new_tokens, or set lists.truncated=drop"
            )
        node.note(
            **built.cut_off,
            lists=made,
            prompts=inside.rows["prompt"].nunique(),
            prompts_without_list=built.dropped_prompts,
            reused=len(built.lists) - used,
            window=[int(s) for s in window],
        )


if __name__ == "__main__":
    command(main)
