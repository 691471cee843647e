"""A dishonest author's tools: change what a run made and make its records agree, so that only arithmetic can tell."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from larpo import tables
from larpo.audit.bytes.check import check_bytes
from larpo.audit.lineage.check import check_lineage
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check
from larpo.audit.science.check import check_numbers
from larpo.hashing import tree_hash
from larpo.workspace.dvc_lock import MANIFEST

Change = Callable[[Path], Any]


def check_of(folder: Path, part: str, name: str) -> Check:
    """One check of the run in `folder`."""
    run = AuditedRun(folder)
    if part == "science":
        return check_numbers(run, name)
    return next(c for c in {"bytes": check_bytes, "lineage": check_lineage}[part](run) if c.name == name)


def quietly(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite a file and give it back its time stamp, by which DVC takes it for unchanged."""
    before = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, offset: int = -1) -> int:
    """Flip one bit of a file, by default in its middle; returns the byte's offset."""
    offset = path.stat().st_size // 2 if offset < 0 else offset
    quietly(path, lambda content: content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    return offset


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def edit_table(path: Path, table: str, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Rewrite a table as its node would have written it. `change` edits in place or returns a new one."""
    frame = tables.read(table, path)
    tables.write(frame if (new := change(frame)) is None else new, table, path)


def edit_json(path: Path, change: Callable[[dict], Any]) -> None:
    tree = json.loads(path.read_text("utf-8"))
    change(tree)
    path.write_text(json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


@dataclass(frozen=True)
class Edit:
    """A change of one file of a run's folder."""

    name: str
    change: Callable[[Path], Any]

    def __call__(self, folder: Path) -> None:
        self.change(folder / self.name)


def text(name: str, old: str, new: str) -> Edit:
    return Edit(name, lambda path: edit_text(path, old, new))


def table(name: str, kind: str, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Edit:
    return Edit(name, lambda path: edit_table(path, kind, change))


def tree(name: str, change: Callable[[dict], Any]) -> Edit:
    return Edit(name, lambda path: edit_json(path, change))


def put(column: str, row: int, value: Any) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        assert not np.array_equal(frame.at[row, column], value)
        frame.at[row, column] = value

    return change


def agree(folder: Path) -> None:
    """Make every manifest and dvc.lock say what lies in the folder now."""
    for path in folder.rglob(f"*{MANIFEST}"):
        if ".dvc" not in path.parts:

            def update(record: dict) -> None:
                for side in ("inputs", "outputs"):
                    for name in record[side]:
                        record[side][name] = tree_hash(folder / name)

            edit_json(path, update)
    run = AuditedRun(folder)
    lock = folder / "dvc.lock"
    locked = yaml.safe_load(lock.read_text("utf-8"))
    for stage in locked["stages"].values():
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            entry["md5"] = run.md5(entry["path"])
            place = folder / entry["path"]
            if place.is_file():
                entry["size"] = place.stat().st_size
    lock.write_text(yaml.safe_dump(locked, sort_keys=False), "utf-8")
