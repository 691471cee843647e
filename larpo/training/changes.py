"""The share of weights that a training moved: in too coarse a dtype small steps vanish, and nothing is learnt."""

from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open


def share_changed(before: str | PathLike, after: str | PathLike) -> float:
    """Share of the weights of folder `after` that are not bit by bit those of folder `before`."""
    first, second = (
        {key: path for path in sorted(Path(f).glob("*.safetensors")) for key in keys(path)} for f in (before, after)
    )
    changed = total = 0
    for key, path in second.items():
        new = tensor(path, key)
        total += new.numel()
        changed += new.numel() if key not in first else int((tensor(first[key], key) != new).sum())
    return changed / total


def keys(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def tensor(path: Path, key: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(key)
