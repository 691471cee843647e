"""YAML as DVC reads it, in one place: version 1.2 through ruamel.

params.yaml is read by DVC, which decides what is stale, and by the nodes, which compute: both must see the same values.
YAML 1.1 reads otherwise: `1e-6` is text, `060` is 48, `3:20` is 200, `yes` is true.
"""

import datetime
import io
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from larpo.errors import UserError, one_line

# What is raised for text that is no YAML, dates and numbers that are none, and nesting without end.
UNREADABLE = (YAMLError, ValueError, RecursionError)
DEEPEST = 100
"""Lists and mappings inside each other: some thousands of them crash the parser, which is written in C."""


def parse(text: str | bytes) -> Any:
    """The content of a YAML text; one of UNREADABLE where there is none. A key that stands twice is refused."""
    depth = 0
    for event in YAML(typ="safe").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError(f"nested more than {DEEPEST} deep")
    return YAML(typ="safe").load(text)


def read(path: str | Path) -> Any:
    """The content of a YAML file, None for an empty one; UserError where it cannot be read."""
    try:
        return parse(Path(path).read_text("utf-8"))
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise UserError(f"{path}: not valid YAML: line {line}: {one_line(error.problem)}; a key stands once") from None
    except (OSError, *UNREADABLE) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)[:300]}") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The sections in a YAML file of parameters.

    Raises
    ------
    UserError
        It cannot be read, holds no mapping, itself, two keys that are one name, a key that is none, or a date, which
        DVC's run-cache cannot keep.
    """
    raw = read(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    _check(raw, "", path)
    return raw


def write(tree: Any) -> str:
    """The text that `parse`, and DVC, read as `tree`; keys in their order."""
    writer, stream = YAML(), io.StringIO()
    writer.default_flow_style, writer.width = False, 10_000
    writer.dump(tree, stream)
    return stream.getvalue()


def _check(tree: Any, key: str, path: str | Path, above: tuple[int, ...] = ()) -> None:
    if id(tree) in above:
        raise UserError(f"{path}: {key}: holds itself")
    above = (*above, id(tree)) if isinstance(tree, dict | list) else above
    if isinstance(tree, dict):
        names: dict[str, Hashable] = {}
        for name, value in tree.items():
            here = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str | int | float):
                raise UserError(f"{path}: {here}: expected a name as key, found {name!r}")
            if str(name) in names:
                raise UserError(f"{path}: {here}: stands twice, as {names[str(name)]!r} and as {name!r}")
            names[str(name)] = name
            _check(value, here, path, above)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            _check(value, f"{key}.{i}", path, above)
    elif isinstance(tree, datetime.date):
        raise UserError(f"{path}: {key}: {tree} is a date to YAML; put it in quotes")
