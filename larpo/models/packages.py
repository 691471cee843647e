"""Files that an installed package carries, such as a model's; its code is never imported or run."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import Distribution
from pathlib import Path

from larpo.errors import UserError


def installed(package: str, key: str) -> tuple[Distribution, list[Path]]:
    """(the distribution, paths of all its files); UserError that names `key` of params.yaml where there is none."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"params.yaml: {key}: package {package!r} is not installed; `pip install --no-deps {package}`"
        ) from None
    return distribution, [Path(str(distribution.locate_file(f))) for f in distribution.files or []]
