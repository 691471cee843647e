"""A dishonest author's tools: change what a run made and make its records agree, so that only arithmetic can tell."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from larpo import tables
from larpo.audit.open import AuditedRun
from larpo.hashing import tree_hash
from larpo.workspace.dvc_lock import MANIFEST
from tests.conftest import Project


def quietly(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite a file and give it back its time stamp, by which DVC takes it for unchanged."""
    before = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, offset: int = -1) -> int:
    """Flip one bit of a file, by default in its middle; returns the byte's offset."""
    offset = path.stat().st_size // 2 if offset < 0 else offset

    def change(content: bytes) -> bytes:
        return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]

    quietly(path, change)
    return offset


def edit_table(path: Path, table: str, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Rewrite a table as its node would have written it. `change` edits in place or returns a new one."""
    frame = tables.read(table, path)
    tables.write(frame if (new := change(frame)) is None else new, table, path)


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    tree = json.loads(path.read_text("utf-8"))
    change(tree)
    path.write_text(json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def agree(project: Project) -> None:
    """Make every manifest and dvc.lock say what lies in the folder now."""
    for path in [*project.folder.rglob(f"*{MANIFEST}")]:
        if ".dvc" not in path.parts:

            def update(record: dict) -> None:
                for side in ("inputs", "outputs"):
                    for name in record[side]:
                        record[side][name] = tree_hash(project.folder / name)

            edit_json(path, update)
    run = AuditedRun(project.folder)
    lock = project.folder / "dvc.lock"
    tree = yaml.safe_load(lock.read_text("utf-8"))
    for stage in tree["stages"].values():
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            entry["md5"] = run.md5(entry["path"])
            place = project.folder / entry["path"]
            if place.is_file():
                entry["size"] = place.stat().st_size
    lock.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
