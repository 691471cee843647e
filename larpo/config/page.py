"""`python -m larpo.config.page`: docs/params.md, every key of params.yaml, from the sections' models.

A row per key: its dotted name, what it takes, its default and its description. `NAME` stands for a name of one's own.
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from larpo.config.params import Params

PAGE = Path("docs/params.md")
HEAD = """# Every key of params.yaml

Made by `python -m larpo.config.page` from the models in `larpo/config/`; do not edit. A key without a default has to be
given. What may stand in `options`, and which names there are, is on the page of the thing that takes them
([README](../README.md)). A wrong key or value is one line, with the nearest name, before anything runs.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "minItems": "at least"}
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
Schema = dict[str, Any]


def page() -> str:
    """The whole page."""
    root = Params.model_json_schema()
    parts = [HEAD]
    for section, schema in root["properties"].items():
        said = _about(schema, root)
        parts.append(f"## {section}\n" + (f"\n{said}\n" if said else ""))
        rows = [f"| {' | '.join(cells)} |" for cells in _rows(section, schema, root)]
        parts.append("\n".join(["| key | takes | default | |", "| --- | --- | --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


def _rows(key: str, schema: Schema, root: Schema) -> Iterator[list[str]]:
    """A key's own row, then those of the keys below it; a section that must stand there has only these."""
    inner = _resolve(schema, root)
    entry = _entry(inner)
    below = inner if "properties" in inner else _resolve(entry, root) if entry else {}
    name = key if entry is None else f"{key}.NAME"
    if not below.get("properties"):
        default = f"`{json.dumps(schema['default'], ensure_ascii=False)}`" if "default" in schema else ""
        yield [f"`{key}`", _takes(schema, root), default, _escaped(schema.get("description", ""))]
    for field, one in below.get("properties", {}).items():
        yield from _rows(f"{name}.{field}", one, root)


def _takes(schema: Schema, root: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_takes(one, root) for one in schema["anyOf"]))
    inner = _resolve(schema, root)
    if "enum" in inner or "const" in inner:
        return ", ".join(f"`{value}`" for value in inner.get("enum", [inner.get("const")]))
    if inner.get("type") == "array":
        items = _resolve(inner["items"], root)
        keys = ", ".join(f"`{k}`" for k in items.get("properties", {}))
        return f"list of {{{keys}}}" if keys else f"list of {_takes(items, root)}"
    if inner.get("type") == "object":
        return "mapping"
    bounds = " ".join(f"{sign} {inner[name]:g}" for name, sign in BOUNDS.items() if name in inner)
    return f"{WORDS[inner['type']]} {bounds}".strip()


def _resolve(schema: Schema, root: Schema) -> Schema:
    """What a schema refers to; of a section or null, the section."""
    options = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    if len(options) == 1:
        return _resolve(options[0], root)
    name = schema.get("$ref", "").rpartition("/")[2]
    return root["$defs"][name] if name else schema


def _entry(schema: Schema) -> Schema | None:
    """The schema of one entry, where names are a mapping's keys."""
    found = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
    return next((one for one in found if isinstance(one, dict)), None)


def _about(schema: Schema, root: Schema) -> str:
    inner = _resolve(schema, root)
    entry = _entry(inner)
    return inspect.cleandoc(_resolve(entry or inner, root).get("description", "") if inner["type"] == "object" else "")


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
