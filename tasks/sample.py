"""Node `sample@s`: k responses per prompt from the behaviour policy at the iteration's temperatures.

Algorithm 1, line 2: y_1..y_k ~ π_β(·|x), with π_β the policy this iteration starts from. With `sample.gold` each
prompt's own solution follows them, in the same policy's tokens.
"""

import pandas as pd

from larpo import tables
from larpo.engines import Sampling
from larpo.errors import UserError
from larpo.hashing import digest, seed_of
from larpo.models.chat import end_tokens, gold_rows, turn_end
from tasks.frame.generator import Generator, note_cut
from tasks.frame.node import Node, command


def main(iteration: str) -> None:
    """Write data/sample/ITERATION.parquet."""
    with Node("sample", iteration) as node:
        params = node.params
        this = params.iterations[iteration]
        node.seed = seed_of(params.seed, "sample", iteration)
        policy, prompts_path = node.checkpoint("policy"), node["prompts"]
        prompts = tables.read("prompts", prompts_path)
        generator = Generator(node, policy)
        n = params.sample.responses // len(this.temperatures)
        parts = []
        for order, temperature in enumerate(this.temperatures):
            sampling = Sampling(n, temperature, params.sample.max_new_tokens, params.sample.top_p)
            part = generator.run(prompts, sampling, f"{order}-t{temperature:g}")
            parts.append(part.assign(temperature=temperature, index=part["index"] + order * n))
        sampled = pd.concat(parts, ignore_index=True).assign(origin="policy")
        dropped: dict[str, int] = {}
        if params.sample.gold:
            end = turn_end(generator.tokenizer, end_tokens(policy, generator.tokenizer))
            gold, dropped = gold_rows(prompts, sampled, generator.tokenizer, end)
            if gold.empty:
                raise UserError(
                    f"{prompts_path}: sample.gold: no usable solution ({dropped}); set prompts.solution_field"
                )
            gold["index"] = params.sample.responses
            frame = pd.concat([sampled, gold], ignore_index=True)
        else:
            frame = sampled
        frame = frame.assign(iteration=int(iteration))
        frame["response_id"] = [
            digest("response", prompt, iteration, temperature, index, list(map(int, ids)))
            for prompt, temperature, index, ids in zip(
                frame["prompt_id"],
                frame["temperature"].astype(object).fillna("gold"),
                frame["index"],
                frame["token_ids"],
                strict=True,
            )
        ]
        order = {p: i for i, p in enumerate(prompts["prompt_id"])}
        frame = frame.assign(o=frame["prompt_id"].map(order)).sort_values(["o", "index"], kind="stable")
        tables.write(frame[tables.SCHEMAS["responses"].names], "responses", node.out("sample"))
        tokens = int(sampled["token_ids"].map(len).sum())
        node.note(tokens=tokens)
        note_cut(node, sampled, "sample.max_new_tokens", params.sample.max_new_tokens)
        if params.sample.gold:
            node.note(gold=len(frame) - len(sampled), prompts_without_gold=dropped)
        node.rows(read=len(prompts), written=len(frame))


if __name__ == "__main__":
    command(main)
