"""The commands `larpo pack` and `larpo unpack`, and what `larpo audit --diff` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from larpo.errors import UserError


def _told(work: Callable[[], list[str]]) -> None:
    """Print what `work` returns; exit code 2 with one line where it was refused."""
    try:
        lines = work()
    except (UserError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from None
    print("\n".join(lines))


def pack_command(
    run: str = typer.Argument(None, help="a folder, pack, Git revision or experiment; default: this project"),
    out: Path = typer.Option(None, "--out", help="the file to write; default: RUN-COMMIT.larpo.tar in this folder"),
    checkpoints: bool = typer.Option(True, help="with --no-checkpoints: without the folders that hold weights"),
    data_limit: float = typer.Option(1.0, min=0, help="GiB up to which a dataset of one's own goes in"),
) -> None:
    """Make one file of a finished run, with all that `larpo audit` needs; the same run makes the same bytes."""

    def work() -> list[str]:
        from larpo.audit.open import open_run
        from larpo.audit.pack.write import GIB, pack
        from larpo.workspace import project_folder
        from larpo.workspace.git import git

        project = project_folder()
        with open_run(project, run) as found:
            name = found.folder.name if run is None or Path(run).is_dir() else run.rsplit("/", 1)[-1]
            head = git(found.folder, "rev-parse", "HEAD", check=False)[:12] or "no-commit"
            file = out or Path(f"{name}-{head}.larpo.tar")
            return pack(found, file, checkpoints=checkpoints, data_limit=int(data_limit * GIB)).lines()

    _told(work)


def unpack_command(
    file: Path = typer.Argument(help="what `larpo pack` made"), folder: Path = typer.Argument(help="a new folder")
) -> None:
    """Open a packed run as a project of its own, every byte checked, nothing in it executed."""

    def work() -> list[str]:
        from larpo.audit.pack.unpack import unpack

        done = unpack(file, folder)
        return [*done.lines(), f"next: larpo audit {done.folder}"]

    _told(work)


def diff_command(run_a: str, run_b: str, as_json: bool) -> int:
    """Print why two runs differ. As `diff` ends: 0 no difference, 1 some, 2 an error (one line).

    Runs are folders, Git revisions or names of experiments of the project around the working folder.
    """
    from larpo.audit.diff.explain import explain
    from larpo.audit.open import open_run
    from larpo.workspace import project_folder

    try:
        project = project_folder()
        with open_run(project, run_a) as a, open_run(project, run_b) as b:
            found = explain(a, b)
    except (UserError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    found.a, found.b = run_a, run_b
    print(json.dumps(found.record(), indent=1, ensure_ascii=False) if as_json else "\n".join(found.lines()))
    return 0 if found.equal else 1
