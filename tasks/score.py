"""Node `score@s`: the reward of every response of iteration s."""

from larpo import tables
from larpo.errors import UserError
from tasks.frame.node import Node, command
from tasks.frame.scoring import score_in_parts

PART = 4096  # responses per part: what a kill can cost


def main(iteration: str) -> None:
    """Write data/score/ITERATION.parquet."""
    with Node("score", iteration) as node:
        prompts_path, sample_path = node["prompts"], node["sample"]
        prompts = tables.read("prompts", prompts_path)
        responses = tables.read("responses", sample_path)
        unknown = ~responses["prompt_id"].isin(prompts["prompt_id"])
        if unknown.any():
            raise UserError(
                f"{sample_path}, row {int(unknown.to_numpy().argmax())}: its prompt is not in {prompts_path}; "
                f"run `dvc repro --force sample@{iteration}`"
            )
        responses["n_tokens"] = responses["token_ids"].map(len)
        found, facts = score_in_parts(node, responses, prompts, PART, (sample_path, prompts_path))
        frame = found.assign(response_id=responses["response_id"], reward_name=node.params.score.reward)
        tables.write(frame[tables.SCHEMAS["rewards"].names], "rewards", node.out("score"))
        gold = (responses["origin"] == "gold").to_numpy()
        cut = int((responses["finish_reason"] == "length").sum())
        node.note(reward=facts, mean_reward=float(frame["reward"][~gold].mean()), truncated=cut)
        if gold.any():
            node.note(gold=int(gold.sum()), gold_wrong=int((frame["correct"][gold].astype(float) == 0).sum()))
        node.rows(read=len(responses), written=len(frame))


if __name__ == "__main__":
    command(main)
