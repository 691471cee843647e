"""Node `items@BENCHMARK`: what a benchmark asks, as conversations, the same for every checkpoint."""

from larpo import tables
from larpo.benchmarks import build_benchmark
from larpo.errors import at
from tasks.frame.node import Node, command


def main(benchmark: str) -> None:
    """Write data/items/BENCHMARK.parquet."""
    with Node("items", benchmark) as node:
        params = node.params
        bench = build_benchmark(params, benchmark)
        with at(f"benchmarks.{benchmark}"):
            items = bench.items()
        tables.write(items, "items", node.out("items"))
        node.rows(read=len(items), written=len(items))


if __name__ == "__main__":
    command(main)
