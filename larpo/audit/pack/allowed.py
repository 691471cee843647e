"""What of a pack is opened: outputs, declared data, judgements, and code that the graph names. All else stays shut.

Settings, environments, stored bytecode, Makefiles and scratch are read by tools that nobody asks about a run.
"""

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from larpo.audit.lineage.commits import CODE
from larpo.errors import UserError
from larpo.workspace.dvc_lock import LOCK, LockedNode

FRAME = ("dvc.yaml", str(LOCK), "params.yaml", "requirements/lock.txt", ".dvcignore")
"""Packed as they lie, whether committed or not."""
TEXTS = (".py", ".yaml", ".yml", ".json", ".jsonl", ".txt", ".md", ".csv", ".j2", ".jinja", ".html", ".css", ".js")
ROWS = (".json", ".jsonl", ".gz", ".csv", ".tsv", ".parquet", ".npy", ".txt", ".yaml", ".yml", ".html", ".svg", ".png")
# Nothing that a node makes or reads as data lies among code, tests, settings or half-done work.
HOUSE = ("larpo", "tasks", "flows", "tests", "studies", "configs", "requirements", "bench", "docs", "scratch", "build")
Kind = Literal["frame", "output", "judgements", "data", "code"]


class Allowed:
    """By the run's dvc.lock and params.yaml.

    Raises
    ------
    UserError
        dvc.lock declares an output where none may lie.
    """

    def __init__(self, nodes: Collection[LockedNode], params: Any):
        self.outputs = {path for node in nodes for path in node.outs}
        self.declared = {path for node in nodes for path in node.deps}
        self.data = {path for path in (*self.declared, *_texts(params)) if _is_place(path)}
        files = {path for node in nodes for path, entry in node.outs.items() if not entry.md5.endswith(".dir")}
        if wrong := sorted(path for path in self.outputs if not _is_place(path, path in files)):
            raise UserError(f"{LOCK}: declares the output {wrong[0]}, where no node's output may lie; not opened")

    def kind(self, path: str) -> Kind | None:
        """Of the member run/`path`; None for what a pack may not bring."""
        above = {str(p) for p in (PurePosixPath(path), *PurePosixPath(path).parents)}
        parts, suffix = path.split("/"), PurePosixPath(path).suffix
        if path in FRAME:
            return "frame"
        if self.outputs & above:
            return "output"
        if _hidden(parts):
            return None
        if parts[0] == "judgements":
            return "judgements" if len(parts) == 2 and suffix == ".jsonl" else None
        if (path.startswith(CODE) and suffix in TEXTS) or (path in self.declared and suffix == ".py"):
            return "code"
        return "data" if self.data & above and _is_place(path, True) else None


def _hidden(parts: list[str]) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in parts)


def _is_place(path: str, file: bool = False) -> bool:
    """Whether an output or data may lie there: a folder, a file in one, or a file of rows beside dvc.yaml."""
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or _hidden(list(parts)):
        return False
    named = len(parts) > 1 or PurePosixPath(path).suffix in (ROWS if file else ("", *ROWS))
    return parts[0] not in HOUSE and path not in FRAME and named


def _texts(tree: Any) -> Iterator[str]:
    """Texts of parameters that may be paths, as one name each."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(value)
    elif isinstance(tree, str) and 0 < len(tree) < 1000:
        yield PurePosixPath(tree).as_posix()
