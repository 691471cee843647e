"""Node `report`: scores and records of the whole run as one HTML page, JSON and CSV."""

from larpo.report.write import write_report
from tasks.frame.node import Node, command


def main() -> None:
    """Write report/index.html, its scores as JSON and CSV, and the curves that `dvc plots` draws as CSV."""
    with Node("report") as node:
        hashes = {s: node.input_hashes[node["lists", s]] for s in node.params.iterations}
        read, written = write_report(node.params, hashes, node.out)
        node.rows(read=read, written=written)


if __name__ == "__main__":
    command(main)
