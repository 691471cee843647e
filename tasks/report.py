"""Node `report`: scores and records of the whole run as one HTML page, JSON and CSV."""

from __future__ import annotations

from larpo.config.params import Params
from larpo.report.write import OUTPUTS, write_report
from tasks.frame.node import Node, command, load_params

MANIFEST = "report/report.manifest.json"


def inputs(params: Params) -> list[str]:
    """Files and folders that the report reads."""
    kinds = ("prompts", "score", "candidates", "lists", "reference")
    return [
        *[f"data/{kind}/{s}.parquet" for s in params.iterations for kind in kinds],
        *[f"data/train/{s}" for s in params.iterations],
        *[
            f"data/evaluate/{p}-{b}.{suffix}"
            for p in params.evaluate.policies
            for b in params.benchmarks
            for suffix in ("parquet", "json")
        ],
        *[f"data/evaluate/retrieval-{name}.json" for name in params.retrieval],
        *[f"data/evaluate/best_of_n-{name}.json" for name in params.best_of_n],
    ]


def main() -> None:
    """Write report/index.html, its scores as JSON and CSV, and the curves that `dvc plots` draws as CSV."""
    params = load_params()
    with Node(
        "report", "", params, uses=list(Params.model_fields), inputs=inputs(params), outputs=OUTPUTS, manifest=MANIFEST
    ) as node:
        hashes = {s: node.input_hashes[f"data/lists/{s}.parquet"] for s in params.iterations}
        read, written = write_report(params, hashes, node.out)
        node.rows(read=read, written=written)


if __name__ == "__main__":
    command(main)
