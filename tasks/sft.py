"""Node `sft@NAME`: supervised fine-tuning on reference responses, before or instead of preference optimisation.

Like the node `policy` it writes an empty memory, for an iteration may start from it.
"""

from collections import Counter

import pandas as pd

from larpo import tables
from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.models.chat import end_tokens, gold_token_ids, render_prompts, turn_end
from larpo.models.load import load_model, load_tokenizer
from larpo.sources.prompts import draw
from larpo.training.arguments import budget, training_arguments
from larpo.training.changes import share_changed
from larpo.training.determinism import deterministic
from larpo.training.sft_trainer import Example, SFTTrainer
from larpo.training.trainer import StopOnLimits
from tasks.frame.launch import launched
from tasks.frame.node import Node, command, say_repeated
from tasks.frame.train import check_commit, run


def main(name: str) -> None:
    """Write data/policy/NAME, its training curves in data/sft/NAME and the empty data/candidates/NAME.parquet."""
    node = Node("sft", name)
    params = node.params
    this = params.sft[name]
    if launched(this.launch, "tasks.sft", name):
        return
    check_commit()
    seed = node.seed = seed_of(this.seed, "sft", name)
    with node:
        policy = node.checkpoint("policy")
        args = training_arguments(this, f"sft.{name}", "examples", node.scratch / "checkpoints", seed)
        again: Counter[str] = Counter()
        section, asked = f"sft.{name}.data", f"sft.{name}.examples"
        frame = draw(this.data, this.examples, seed, held_out=False, section=section, refused=again, asked=asked)
        say_repeated(node, again, this.data)
        if (lost := frame["solution"].isna()).any():
            raise UserError(
                f"params.yaml: sft.{name}.data.solution_field: {int(lost.sum())} of {len(frame)} prompts have no "
                "reference response; expected a column that holds one for each"
            )
        # A response of blanks would teach to end at once.
        rows, frame = len(frame), frame[frame["solution"].str.strip() != ""]
        tokenizer = load_tokenizer(policy)
        end = turn_end(tokenizer, end_tokens(policy, tokenizer))
        responses = gold_token_ids(tokenizer, frame["solution"].tolist(), end)
        prompts = render_prompts(tokenizer, frame["messages"].tolist())
        examples = [Example(p, r) for p, r in zip(prompts, responses, strict=True) if r is not None]
        kept = [e for e in examples if len(e) <= this.max_length]
        if not kept:
            raise UserError(
                f"params.yaml: sft.{name}.max_length: none of {rows} examples has at most "
                f"{this.max_length} tokens that the tokenizer knows; raise it, or take other data"
            )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        with deterministic(seed, f"sft.{name}", this.deterministic):
            model = load_model(policy, params.policy.dtype)
            stop = [StopOnLimits(node.stage)]
            trainer = SFTTrainer(
                model, args, kept, pad, budget=budget(this, "examples"), processing_class=tokenizer, callbacks=stop
            )
            run(node, trainer, weights := node.out("policy"), node.out("sft"))
        if not node.leads:
            return
        tables.write(pd.DataFrame(columns=tables.SCHEMAS["candidates"].names), "candidates", node.out("candidates"))
        node.note(steps=trainer.state.global_step, response_tokens=sum(len(e.response_ids) for e in kept))
        node.note(weights_changed=share_changed(policy, weights))
        dropped = {
            "blank_solution": rows - len(frame),
            "unknown_tokens": len(frame) - len(examples),
            "too_long": len(examples) - len(kept),
            **again,
        }
        node.rows(read=rows + again.total(), written=len(kept), dropped=dropped)


if __name__ == "__main__":
    command(main)
