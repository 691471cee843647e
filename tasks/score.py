"""Node `score@s`: the reward of every response of iteration s."""

import pyarrow as pa
import pyarrow.compute as pc

from larpo import tables
from larpo.errors import UserError
from tasks.frame.node import Node, command
from tasks.frame.scoring import score_in_parts

PART = 4096  # responses per part: what a kill can cost
COLUMNS = ["prompt_id", "response_id", "text", "token_ids", "finish_reason", "origin"]


def main(iteration: str) -> None:
    """Write data/score/ITERATION.parquet."""
    with Node("score", iteration) as node:
        prompts_path, sample_path = node["prompts"], node["sample"]
        prompts = tables.read("prompts", prompts_path)
        found = pa.concat_tables(tables.scan("responses", sample_path, COLUMNS))
        responses = found.drop_columns("token_ids").to_pandas()
        responses["n_tokens"] = pc.list_value_length(found["token_ids"]).to_numpy()
        unknown = ~responses["prompt_id"].isin(prompts["prompt_id"])
        if unknown.any():
            raise UserError(
                f"{sample_path}, row {int(unknown.to_numpy().argmax())}: its prompt is not in {prompts_path}; "
                f"run `dvc repro --force sample@{iteration}`"
            )
        scores, facts = score_in_parts(node, responses, prompts, PART, (sample_path, prompts_path))
        frame = scores.assign(response_id=responses["response_id"], reward_name=node.params.score.reward)
        tables.write(frame[tables.SCHEMAS["rewards"].names], "rewards", node.out("score"))
        gold = (responses["origin"] == "gold").to_numpy()
        cut = int((responses["finish_reason"] == "length").sum())
        node.note(reward=facts, mean_reward=float(frame["reward"][~gold].mean()), truncated=cut)
        if gold.any():
            node.note(gold=int(gold.sum()), gold_wrong=int((frame["correct"][gold].astype(float) == 0).sum()))
        node.rows(read=len(responses), written=len(frame))


if __name__ == "__main__":
    command(main)
