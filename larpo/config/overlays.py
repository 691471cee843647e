"""Files with sections of params.yaml that are laid over others: what depends on the machine, such as configs/."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from larpo.config.yaml12 import read_mapping
from larpo.errors import UserError


def read_sections(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError with one line where it is missing, not YAML, or no mapping."""
    if not Path(file).is_file():
        raise UserError(f"{file}: not found; expected sections of params.yaml")
    return read_mapping(file)


def lay_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """{a: {x: 1, y: 2}} and {a: {y: 3}} → {a: {x: 1, y: 3}}; lists and values are replaced whole.

    The key `*` stands for every mapping that is there: {sft: {"*": {launch: f}}} reaches each fine-tuning, whatever
    its name, and makes none. Null takes a mapping away: {iterations: {"3": null}}, {retrieval: {"*": null}}.
    """
    out = dict(below)
    for key, value in above.items():
        if key == "*" and isinstance(value, dict | None):
            out = {k: lay_over(v, value) if value and isinstance(v, dict) else v for k, v in out.items()}
            out = out if value is not None else {k: v for k, v in out.items() if not isinstance(v, dict)}
        elif value is None and isinstance(out.get(key, {}), dict):
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key, {}), dict):
            out[key] = lay_over(out.get(key, {}), value)
        else:
            out[key] = value
    return out


def lay_all(below: dict[str, Any], files: Iterable[str | Path]) -> dict[str, Any]:
    """The sections of each file over those before it; every file is read before the first is used."""
    for sections in [read_sections(file) for file in files]:
        below = lay_over(below, sections)
    return below
