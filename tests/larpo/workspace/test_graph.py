"""The graph comes from DVC: names, kinds, dependencies, order, targets."""

import os
import threading

import pytest

from larpo.errors import UserError
from larpo.workspace.dvc import GraphNode, kind_of, read_graph, select
from tests.flows.conftest import NODES, Project


def test_reads_names_kinds_and_dependencies_in_order(project: Project) -> None:
    graph = read_graph(project.folder)
    assert set(graph) == set(NODES)
    assert (graph["sample@1"].kind, graph["sample@1"].needs) == ("sample", ("policy", "prompts@1"))
    assert graph["evaluate@1-held_out"].needs == ("train@1",)
    assert graph["report"].needs == ("evaluate@0-held_out", "evaluate@1-held_out")
    assert [n.name for n in graph.values() if not n.meta.heavy] == [
        "prompts@1",
        "evaluate@0-held_out",
        "evaluate@1-held_out",
        "report",
    ]
    order = list(graph)
    assert all(order.index(need) < order.index(node.name) for node in graph.values() for need in node.needs)


def test_data_files_are_no_nodes(project: Project) -> None:
    (project.folder / "raw.txt").write_text("x")
    project.dvc("add", "-q", "raw.txt")
    path = project.folder / "dvc.yaml"
    path.write_text(path.read_text().replace("deps: [stage.py]", "deps: [stage.py, raw.txt]", 1))
    graph = read_graph(project.folder)
    assert "raw.txt.dvc" not in graph
    assert graph["policy"].needs == ()


CHAIN = {n: GraphNode(n, kind_of(n), needs) for n, needs in [("a@1", ()), ("b", ("a@1",)), ("a@2", ("b",)), ("c", ())]}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, ["a@1", "b", "a@2", "c"]),
        (["b"], ["a@1", "b"]),
        (["a"], ["a@1", "b", "a@2"]),
        (["c", "a@1"], ["a@1", "c"]),
    ],
)
def test_targets_bring_what_they_need(targets: list[str] | None, expected: list[str]) -> None:
    assert list(select(CHAIN, targets)) == expected


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"target 'a@3' is not a node of dvc.yaml; did you mean 'a@[12]'"):
        select(CHAIN, ["a@3"])


def test_a_wrong_graph_is_one_line(project: Project) -> None:
    path = project.folder / "dvc.yaml"
    path.write_text(path.read_text().replace("deps: [stage.py]", "deps: [stage.py, report/index.html]", 1))
    with pytest.raises(UserError, match=r"^dvc\.yaml: Same item.* in stages: .*policy") as caught:
        read_graph(project.folder)
    assert "\n" not in str(caught.value)


def test_a_lock_that_dvc_is_writing_is_read_when_it_is_whole(finished: Project) -> None:
    """It is written in place; beside another run's a graph is read again. What stays cut off is told at once."""
    lock = finished.folder / "dvc.lock"
    whole = lock.read_text()
    for cut in (0, whole.index("outs:") + 3):
        lock.write_text(whole[:cut])
        writer = threading.Timer(0.3, lock.write_text, [whole])
        writer.start()
        assert set(read_graph(finished.folder)) == set(NODES)
        writer.join()
    lock.write_text(whole[: whole.index("outs:") + 3])
    os.utime(lock, (1e9, 1e9))
    with pytest.raises(UserError, match=r"dvc\.lock"):
        read_graph(finished.folder)
