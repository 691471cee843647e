"""This folder under Git and DVC: the only room that knows them."""

from pathlib import Path


def project_folder(start: str | Path = ".") -> Path:
    """The nearest folder at or above `start` that holds `.dvc`; `start` itself where there is none."""
    here = Path(start).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
