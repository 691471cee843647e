"""The graph as DVC declares it in dvc.yaml: names, dependencies, order. It is never written down again."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx

from larpo.errors import UserError, nearest
from larpo.graph import Meta, kinds, read_meta


@dataclass(frozen=True)
class GraphNode:
    """One stage. `kind` is what precedes `@`: `sample` of `sample@1`, `evaluate` of `evaluate@0-held_out`."""

    name: str
    kind: str
    needs: tuple[str, ...]
    meta: Meta = field(default_factory=Meta)


def node_name(root: Path, stage: Any) -> str:
    """As `dvc repro` names it in the project's folder; `Stage.addressing` follows the working folder."""
    file = Path(stage.path).relative_to(root).as_posix()
    return stage.name if file == "dvc.yaml" else f"{file}:{stage.name}" if hasattr(stage, "name") else file


def kind_of(name: str) -> str:
    return name.rsplit(":", 1)[-1].split("@", 1)[0]


def read_graph(folder: str | Path = ".") -> dict[str, GraphNode]:
    """Every stage that has a command, each after all that it needs, otherwise in the order of dvc.yaml. What is said of
    its kind comes from this project's dvc.yaml (an audited run may be older), else from that of `folder`.

    Raises
    ------
    UserError
        No DVC project here, or dvc.yaml is wrong (syntax, a cycle, an output declared twice).
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    known = kinds()
    try:
        with Repo(str(folder)) as repo:
            graph = repo.index.graph  # edges go from a stage to what it needs
            name = partial(node_name, Path(repo.root_dir))
            place = {stage: i for i, stage in enumerate(repo.index.stages)}
            order = nx.lexicographical_topological_sort(graph.reverse(), key=place.__getitem__)
            # Stages without a command (data added by `dvc add`) have nothing to run.
            return {
                name(stage): GraphNode(
                    name(stage),
                    kind_of(name(stage)),
                    tuple(name(need) for need in sorted(graph.successors(stage), key=place.__getitem__) if need.cmd),
                    known.get(kind_of(name(stage))) or read_meta(kind_of(name(stage)), stage.meta),
                )
                for stage in order
                if stage.cmd
            }
    except DvcException as error:
        raise UserError(f"dvc.yaml: {' '.join(str(error).split())}") from None


def select(graph: dict[str, GraphNode], targets: list[str] | None) -> dict[str, GraphNode]:
    """The targets with everything they need, in order; a target is a node or a kind. None: the whole graph.

    Raises
    ------
    UserError
        A target that is neither.
    """
    if not targets:
        return dict(graph)
    wanted: list[str] = []
    for target in targets:
        found = [target] if target in graph else [n.name for n in graph.values() if n.kind == target]
        if not found:
            known = [*graph, *{node.kind for node in graph.values()}]
            raise UserError(f"target {target!r} is not a node of dvc.yaml{nearest(target, known)}")
        wanted += found
    keep: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in keep:
            keep.add(name)
            wanted += graph[name].needs
    return {name: node for name, node in graph.items() if name in keep}
