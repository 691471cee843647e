"""What a run takes from outside, one record per thing: by content, by commit or by version.

    key       the parameter that names it
    name      as it is named there
    kind      file, folder, package, hub, code (of the run's own), generated (by this project's code)
    version   of a package, or the commit of a hub repository
    hash      MD5 of a file, or of a folder's files with their names
    type, revision    of a hub repository: model or dataset; the revision that was asked for
    files     of own code: path → MD5

The node `inputs` writes them; nodes depend on them. They hold neither times nor places of a machine, so that the same
inputs are the same bytes. A licence may be known later than the thing itself, and is no input: `with_licence`.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from larpo.hashing import tree_hash
from larpo.sources import hub

Source = dict[str, Any]
Hash = Callable[[str | Path], str]


def record(name: str, kind: str, version: str | None = None, hash_: str | None = None, **more: Any) -> Source:
    return {"name": name, "kind": kind, "version": version, "hash": hash_, **more}


def generated(name: str) -> Source:
    """Made by this project's code."""
    return record(name, "generated")


def package(name: str, path: Path | None = None, hash_of: Hash = tree_hash) -> Source:
    """An installed distribution; `path` is the file or folder in it that is read, where there is one."""
    return record(name, "package", importlib.metadata.version(name), None if path is None else hash_of(path))


def local(path: str | Path, hash_of: Hash = tree_hash) -> Source:
    """A file or a folder."""
    return record(str(path), "folder" if Path(path).is_dir() else "file", None, hash_of(path))


def of_hub(name: str, kind: hub.Kind, revision: str | None, commit: str | None) -> Source:
    """A hub repository at a commit."""
    return record(name, "hub", commit, None, type=kind, revision=revision)


def with_licence(source: Source) -> Source:
    """A record as a manifest names it, with the licence that the thing states, as far as that is known here."""
    name, kind, licence = source["name"], source["kind"], None
    if kind == "package":
        licence = package_licence(name)
    elif kind in ("file", "folder"):
        licence = card_licence(Path(name) if kind == "folder" else Path(name).parent)
    elif kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        card = try_to_load_from_cache(name, "README.md", revision=source["version"], repo_type=source["type"])
        licence = card_licence(Path(card).parent) if isinstance(card, str) else None
    return source | {"licence": licence}


def package_licence(name: str) -> str | None:
    """As the distribution states it: its expression, else its field of one line, else its classifier."""
    meta = importlib.metadata.metadata(name)
    stated = meta.get("License-Expression") or meta.get("License")
    if stated and "\n" not in stated.strip():
        return stated.strip()
    classifiers = [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    return classifiers[0].rsplit(" :: ", 1)[-1] if classifiers else None


def card_licence(folder: Path) -> str | None:
    """`license` in the front matter of a model or dataset card; None without one."""
    card = folder / "README.md"
    try:
        text = card.read_text("utf-8")
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return str(licence) if licence else None
