"""Node `evaluate@POLICY-BENCHMARK`: parse and score what a checkpoint answered; no model runs here.

A judge's replies are kept in judgements/ (outside DVC's outputs, so that none is paid for twice) and beside each score.
"""

import pandas as pd

from larpo import tables
from larpo.benchmarks import build_benchmark
from larpo.benchmarks.items import join_items
from larpo.errors import UserError, at
from larpo.workspace.files import write_json
from tasks.frame.node import Node, command


def main(policy: str, benchmark: str) -> None:
    """Write data/evaluate/POLICY-BENCHMARK.parquet and its metrics as .json."""
    with Node("evaluate", f"{policy}-{benchmark}") as node:
        bench = build_benchmark(node.params, benchmark)
        source, outputs_path = node["items"], node["generate"]
        items = tables.read("items", source)
        outputs = tables.read("outputs", outputs_path)
        check_outputs(items, outputs, source, outputs_path)
        with at(f"benchmarks.{benchmark}"):
            scored = bench.score(items, outputs)
        frame = join_items(outputs.join(scored), items)
        if "judgement" not in frame:
            frame["judgement"] = None
        frame = frame[tables.SCHEMAS["evaluations"].names]
        tables.write(frame, "evaluations", node.out("evaluate", ".parquet"))
        metrics = {"benchmark": benchmark, "policy": policy, **bench.aggregate(items, frame)}
        write_json(node.out("evaluate", ".json"), metrics)
        node.rows(read=len(outputs), written=len(frame))


def check_outputs(items: pd.DataFrame, outputs: pd.DataFrame, items_path: str, outputs_path: str) -> None:
    """Refuse outputs that are not those of the items: answers to others, or items that were never asked."""
    fix = f"not made from {items_path}; run `dvc repro --force` on the generate node"
    unknown = ~outputs["prompt_id"].isin(items["prompt_id"])
    if unknown.any():
        raise UserError(
            f"{outputs_path}, row {int(unknown.to_numpy().argmax())}: answers no item of {items_path}, {fix}"
        )
    greedy = outputs.loc[(outputs["sample"] < 0) & (outputs["turn"] == 0), "prompt_id"]
    if lost := int((~items["prompt_id"].isin(greedy)).sum()):
        raise UserError(f"{outputs_path}: {lost} of {len(items)} items have no greedy answer, {fix}")


if __name__ == "__main__":
    command(main)
