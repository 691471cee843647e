"""Node `best_of_n@NAME`: the run's reward picks among N samples of a benchmark; is the pick better, as N grows?"""

from larpo import tables
from larpo.errors import UserError
from larpo.statistics import best_of_n_curve
from larpo.workspace.files import write_json
from larpo.workspace.progress import say
from tasks.frame.node import Node, command
from tasks.frame.scoring import score_in_parts

PART = 4096  # responses per part: what a kill can cost


def main(name: str) -> None:
    """Write data/evaluate/best_of_n-NAME.parquet (a row per sample) and its curve as .json."""
    with Node("best_of_n", name) as node:
        params = node.params
        wanted = params.best_of_n[name]
        items_path, outputs_path, scores_path = node["items"], node["generate"], node["evaluate"]
        outputs = tables.read("outputs", outputs_path)
        samples = outputs[(outputs["sample"] >= 0) & (outputs["turn"] == 0)]
        # The first temperature's samples are the headline, as everywhere.
        samples = samples[samples["temperature"] == samples["temperature"].iloc[0]].reset_index(drop=True)
        fewest = int(samples.groupby("prompt_id").size().min())
        if fewest < max(wanted.ns):
            raise UserError(
                f"{outputs_path}: {fewest} samples of an item; best_of_n.{name}.ns asks for {max(wanted.ns)}"
            )
        scores = tables.read("evaluations", scores_path)[[*tables.OUTPUT_KEY, "score"]]
        joined = samples.merge(scores, on=tables.OUTPUT_KEY, how="left", validate="one_to_one")
        if joined["score"].isna().any():
            raise UserError(
                f"{scores_path}: not made from {outputs_path}; run `dvc repro --force` on the evaluate node"
            )
        items = tables.read("items", items_path)
        found, facts = score_in_parts(node, samples, items, PART, (outputs_path, items_path))
        frame = joined.assign(reward=found["reward"])
        tables.write(frame[tables.SCHEMAS["scored"].names], "scored", node.out("evaluate", ".parquet"))
        points = best_of_n_curve(frame, wanted.ns)
        metrics = {
            "policy": wanted.policy,
            "benchmark": wanted.benchmark,
            "reward": params.score.reward,
            "items": int(frame["prompt_id"].nunique()),
            "samples": fewest,
            "points": points,
        }
        write_json(node.out("evaluate", ".json"), metrics)
        for p in points:
            values = [f"{key} {p[key]['value']:.3f}" for key in ("score", "upper", "reward")]
            say(f"{node.stage}: N = {p['n']}: {', '.join(values)}")
        node.note(reward=facts)
        node.rows(read=len(samples), written=len(frame))


if __name__ == "__main__":
    command(main)
