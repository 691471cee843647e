"""A long node's table made part by part: what a kill can cost is one part, and the table is the same however often it
was killed."""

from collections.abc import Callable, Sequence

import pandas as pd

from larpo.workspace.progress import progress, say
from tasks.frame.files import read_part, write_part
from tasks.frame.node import Node


def in_parts(
    node: Node,
    bounds: Sequence[tuple[int, int]],
    make: Callable[[int, int], pd.DataFrame],
    tag: str = "part",
    unit: str = "rows",
) -> pd.DataFrame:
    """`make(start, end)` for each of `bounds`, one below the other; parts that the node's scratch holds are not made
    again.

    Parameters
    ----------
    make
        Depends on nothing but the node's inputs and its arguments.
    tag
        Tells apart several tables of one node.
    unit
        What start and end count, for the line that says how far it is.
    """
    paths = {start: node.scratch / f"{tag}-{start:08d}.part" for start, _ in bounds}
    parts = {start: read_part(path) for start, path in paths.items()}
    todo = [(start, end) for start, end in bounds if parts[start] is None]
    if len(todo) < len(bounds):
        say(f"{node.stage}: resuming {tag}, {len(bounds) - len(todo)} of {len(bounds)} batches are there")
    for start, end in progress(todo, f"{node.stage} {tag}", unit, lambda bound: bound[1] - bound[0]):
        write_part(make(start, end), paths[start])
        parts[start] = read_part(paths[start])
    return pd.concat(parts.values(), ignore_index=True)


def batches(total: int, size: int) -> list[tuple[int, int]]:
    """0…total in steps of `size`."""
    return [(start, min(start + size, total)) for start in range(0, total, size)]
