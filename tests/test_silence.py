"""docs/faults.md says of every node what it drops, by the names that the code counts by."""

import ast
import re
from pathlib import Path

from larpo.graph import read_stages
from tests.conftest import ROOT

PAGE = ROOT / "docs/faults.md"
# Where rows are dropped, and the node whose manifest says so.
CODE = {
    "prompts": ["larpo/sources/prompts.py"],
    "sft": ["tasks/sft.py", "larpo/sources/prompts.py"],
    "sample": ["larpo/models/chat.py"],
    "reward": ["tasks/reward.py", "larpo/rewards/accuracy.py", "larpo/sources/pairs.py"],
    "lists": ["tasks/lists.py", "larpo/lists/recipes.py"],
}


def reasons(path: Path) -> set[str]:
    """What a module counts dropped rows by: keys of `dropped`, what `keep` is told, a counted loss that a function
    returns."""
    found: set[str] = set()

    def keys(node: ast.AST) -> set[str]:
        inside = [key for part in ast.walk(node) if isinstance(part, ast.Dict) for key in part.keys]
        return {key.value for key in inside if isinstance(key, ast.Constant)}

    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id == "dropped" and node.value is not None:
                    found |= keys(node.value)
                if isinstance(target, ast.Subscript) and getattr(target.value, "id", "") == "dropped":
                    found |= {target.slice.value} if isinstance(target.slice, ast.Constant) else set()
        elif "dropped" in (
            isinstance(node, ast.AugAssign) and getattr(node.target, "id", ""),
            isinstance(node, ast.keyword) and node.arg,
        ):
            found |= keys(node.value)
        elif isinstance(node, ast.BinOp) and getattr(node.left, "id", "") == "dropped":
            found |= keys(node.right)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "keep":
            found.add(node.args[-1].value)
        elif isinstance(node, ast.FunctionDef) and node.name in ("_pair", "_one_pool", "_two_pools"):
            for back in (b.value for b in ast.walk(node) if isinstance(b, ast.Return)):
                found |= (
                    keys(back)
                    if isinstance(back, ast.Tuple)
                    else {
                        part.value
                        for part in ([back.body, back.orelse] if isinstance(back, ast.IfExp) else [back])
                        if isinstance(part, ast.Constant)
                    }
                )
    return found


def table() -> dict[str, list[str]]:
    rows = [
        line.split("|")[1:-1] for line in PAGE.read_text("utf-8").splitlines() if re.match(r"\| `[a-z_]+` \|", line)
    ]
    return {row[0].strip(" `"): row for row in rows}


def test_every_node_has_its_row():
    assert list(table()) == list(read_stages())
    assert all(len(row) == 4 for row in table().values())


def test_reasons_of_dropped_rows_are_those_of_the_code():
    notes = (
        r"truncated_share|prompts_without_\w+|weights_changed|lists_\w+|gold_wrong|chat_template|own_system_messages"
    )
    notes = re.compile(f"`({notes})`")
    for node, row in table().items():
        said = set(re.findall(r"`([a-z_]+)`", notes.sub("", row[1])))
        counted = set().union(*(reasons(ROOT / path) for path in CODE.get(node, [])))
        note = {"truncated"} if node in ("sample", "score", "generate") else set()  # counted, and kept
        assert said == counted | note, node


def test_every_module_that_drops_rows_is_looked_at():
    known = {path for paths in CODE.values() for path in paths}
    folders = (
        "tasks",
        "larpo/sources",
        "larpo/lists",
        "larpo/models",
        "larpo/rewards",
        "larpo/benchmarks",
        "larpo/retrieval",
    )
    found = {p.relative_to(ROOT).as_posix() for f in folders for p in (ROOT / f).rglob("*.py") if reasons(p)}
    assert found == known


def test_what_a_node_notes_is_in_its_row():
    for path, notes in {
        "tasks/frame/generator.py": {"sample": ["truncated_share"], "generate": ["truncated_share"]},
        "larpo/lists/recipes.py": {"lists": ["lists_all_cut_off", "lists_ranked_by_cut_off"]},
        "tasks/score.py": {"score": ["gold_wrong"]},
        "larpo/models/initial.py": {"policy": ["chat_template"]},
        "tasks/prompts.py": {"prompts": ["own_system_messages"]},
    }.items():
        text = (ROOT / path).read_text("utf-8")
        for node, names in notes.items():
            assert all(name in text and f"`{name}`" in table()[node][1] for name in names), (path, node)
