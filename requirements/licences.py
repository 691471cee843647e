"""Writes requirements/licences.md: the licence that every locked package states of itself.

.venv/bin/python requirements/licences.py
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """# Licences of the locked packages

Made by `python requirements/licences.py` from what each installed package states of itself; do not edit.

| package | version | licence |
| --- | --- | --- |
"""


def locked() -> dict[str, str]:
    """Package → version, as requirements/lock.txt and weights.txt pin them."""
    lines = [line for name in ("lock.txt", "weights.txt") for line in (HERE / name).read_text("utf-8").splitlines()]
    return dict(match.groups() for line in lines if (match := re.match(r"([\w.-]+)==([^\s;#]+)", line)))


def licence(package: str) -> str:
    """The licence expression, the short licence text, or the licence classifiers; `not stated` without any."""
    found = metadata.metadata(package)
    text = found.get("License-Expression") or (found.get("License") or "").strip()
    classes = [c.rsplit(" :: ", 1)[-1] for c in found.get_all("Classifier") or [] if c.startswith("License ::")]
    # Some put the whole text where its name belongs.
    short = "\n" not in text and len(text) < 80 and text.upper() not in ("", "UNKNOWN", "DUAL LICENSE")
    return text if short else "; ".join(classes) or (text.splitlines() or ["not stated"])[0]


def main() -> None:
    """Write the table, packages in the order of their names."""
    rows = sorted(locked().items(), key=lambda row: row[0].lower())
    lines = [f"| {name} | {version} | {licence(name).replace('|', '/')} |" for name, version in rows]
    (HERE / "licences.md").write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
