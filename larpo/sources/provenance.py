"""Where what a run starts from comes from: one record per model or dataset, for a node's manifest.

Keys: name, kind (package, folder, file, hub, generated), version, licence, hash. What is not known is null and shown as
such; nothing is looked up over a network.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import yaml

from larpo.config.sections import SourceParams
from larpo.hashing import tree_hash

Source = dict[str, Any]


def _source(name: str, kind: str, version: str | None, licence: str | None, hash_: str | None) -> Source:
    return {"name": name, "kind": kind, "version": version, "licence": licence, "hash": hash_}


def generated(name: str) -> Source:
    """Made by the run's own code."""
    return _source(name, "generated", None, None, None)


def package(name: str, path: Path | None = None) -> Source:
    """An installed distribution; `hash` is that of the file or folder in it that is read, where there is one."""
    version = importlib.metadata.version(name)
    return _source(name, "package", version, package_licence(name), None if path is None else tree_hash(path))


def package_licence(name: str) -> str | None:
    """As the distribution states it: its expression, else its field of one line, else its classifier."""
    meta = importlib.metadata.metadata(name)
    stated = meta.get("License-Expression") or meta.get("License")
    if stated and "\n" not in stated.strip():
        return stated.strip()
    classifiers = [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    return classifiers[0].rsplit(" :: ", 1)[-1] if classifiers else None


def local(path: str | Path) -> Source:
    """A file or a folder; its licence is that of the front matter of a README.md in the folder."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return _source(str(path), "folder" if path.is_dir() else "file", None, card_licence(folder), tree_hash(path))


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


def hub(name: str, revision: str | None, kind: str = "model") -> Source:
    """A hub repository, its licence from the card in the local cache, where it is; `revision` null is not pinned."""
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(name, "README.md", revision=revision, repo_type=kind)
    licence = card_licence(Path(card).parent) if isinstance(card, str) else None
    return _source(name, "hub", revision, licence, None)


def dataset(name: str) -> Source:
    """What a parameter names as a dataset: a file, a folder or a hub id (which has no pinned version here)."""
    return local(name) if Path(name).exists() else hub(name, None, "dataset")


def prompts(params: SourceParams) -> list[Source]:
    """Where the prompts of a section come from."""
    if params.source == "reasoning_gym":
        return [package("reasoning-gym")]
    if params.source == "dataset" and params.dataset:
        return [dataset(params.dataset)]
    return [generated(f"prompts: {params.source}")]
