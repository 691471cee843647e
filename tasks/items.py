"""Node `items@BENCHMARK`: what a benchmark asks, as conversations, the same for every checkpoint."""

from __future__ import annotations

from larpo import tables
from larpo.benchmarks import build_benchmark
from larpo.errors import at
from larpo.sources import provenance
from tasks.frame.node import Node, command, load_params


def main(benchmark: str) -> None:
    """Write data/items/BENCHMARK.parquet."""
    params = load_params()
    bench = build_benchmark(params, benchmark)
    out = f"data/items/{benchmark}.parquet"
    with Node(
        "items",
        benchmark,
        params,
        uses=["seed", "prompts", "score", f"benchmarks.{benchmark}"],
        inputs=[],
        outputs=[out],
        manifest=f"data/items/{benchmark}.manifest.json",
    ) as node:
        with at(f"benchmarks.{benchmark}"):
            items = bench.items()
        tables.write(items, "items", node.out(out))
        given = getattr(bench, "source", None)  # the prompts' own held-out part has none
        node.note(sources=[provenance.dataset(given)] if given else provenance.prompts(params.prompts))
        node.rows(read=len(items), written=len(items))


if __name__ == "__main__":
    command(main)
