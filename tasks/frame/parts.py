"""A long node's table made part by part: what a kill can cost is one part, and the table is the same however often it
was killed."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from larpo.errors import UserError
from larpo.workspace.progress import progress, say
from tasks.frame.files import read_part, write_part
from tasks.frame.node import Node

if TYPE_CHECKING:
    from tasks.frame.launch import Processes


def in_parts(
    node: Node,
    bounds: Sequence[tuple[int, int]],
    make: Callable[[int, int], pd.DataFrame],
    tag: str = "part",
    unit: str = "rows",
    processes: "Processes | None" = None,
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
    processes
        That share the parts; each gets the whole table once all are made.
    """
    paths = {start: node.scratch / f"{tag}-{start:08d}.part" for start, _ in bounds}
    parts = {start: read_part(path) for start, path in paths.items()}
    # Whose a part is does not depend on which are there: a process may start when others have made some.
    mine = bounds if processes is None else bounds[processes.rank :: processes.count]
    todo = [(start, end) for start, end in mine if parts[start] is None]
    if len(todo) < len(mine):
        say(f"{node.stage}: resuming {tag}, {len(mine) - len(todo)} of {len(mine)} batches are there")
    for start, end in progress(todo, f"{node.stage} {tag}", unit, lambda bound: bound[1] - bound[0]):
        write_part(make(start, end), paths[start])
        parts[start] = read_part(paths[start])
    if processes is not None:
        processes.wait()
    made = [read_part(paths[start]) if part is None else part for start, part in parts.items()]
    if missing := [paths[start].name for start, part in zip(parts, made, strict=True) if part is None]:
        raise UserError(f"{node.stage}: {missing[0]} is not there, which another process was to make; run it again")
    return pd.concat(made, ignore_index=True)


def batches(total: int, size: int) -> list[tuple[int, int]]:
    """0…total in steps of `size`."""
    return [(start, min(start + size, total)) for start in range(0, total, size)]
