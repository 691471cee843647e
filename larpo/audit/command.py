"""The commands `larpo audit`, `larpo pack` and `larpo unpack`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from larpo.errors import UserError, one_line


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What Git, DVC or the disk refuse is told as bad input is."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(one_line(error)) from None


def audit(
    run: str = typer.Argument(None, help="a folder, pack, Git revision or experiment; default: this project"),
    node: list[str] = typer.Option([], help="execute this node again; repeat for more"),
    every: bool = typer.Option(False, "--all", help="execute every node again"),
    again: bool | None = typer.Option(
        None,
        "--again/--no-again",
        help="execute one node of each kind again; default: if the run is this project's own",
    ),
    diff: tuple[str, str] | None = typer.Option(None, metavar="RUN_A RUN_B", help="why two runs' numbers differ"),
    out: Path = typer.Option(None, help="folder of audit.html and audit.json; default: report/ of this project"),
    as_json: bool = typer.Option(False, "--json", help="print JSON"),
) -> None:
    """Whether a finished run is what it says it is: bytes, lineage, science, nodes executed again.

    Exit code 0 if everything that was checked holds, 1 if something does not, 2 on bad input. With --diff: 0 if the
    runs are equal, 1 if they differ.
    """
    from larpo.audit.open import open_run
    from larpo.audit.run import Again, is_own
    from larpo.audit.run import audit as whole
    from larpo.audit.show import print_audit
    from larpo.workspace import project_folder

    if diff is not None:
        if run or node or every or again is not None:
            raise UserError("larpo audit: --diff compares two runs and takes neither a run nor nodes; leave them out")
        raise typer.Exit(0 if print_difference(*diff, as_json) else 1)
    if sum((bool(node), every, again is False)) > 1:
        raise UserError("larpo audit: --node, --all and --no-again exclude each other; give one")
    project = project_folder()
    with one_line_errors(), open_run(project, run) as opened:
        choice, own, folder = Again(tuple(node), every, again), is_own(project, run), out or project / "report"
        tree = whole(opened, choice, own, folder, lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(tree, indent=1, ensure_ascii=False))
    else:
        print_audit(tree)
        print(folder / "audit.html")
    raise typer.Exit(0 if tree["holds"] else 1)


def pack(
    run: str = typer.Argument(None, help="a folder, pack, Git revision or experiment; default: this project"),
    out: Path = typer.Option(None, "--out", help="the file to write; default: RUN-COMMIT.larpo.tar in this folder"),
    checkpoints: bool = typer.Option(True, help="with --no-checkpoints: without the folders that hold weights"),
    data_limit: float = typer.Option(1.0, min=0, help="GiB up to which a dataset of one's own goes in"),
) -> None:
    """Make one file of a finished run, with all that `larpo audit` needs; the same run makes the same bytes."""
    from larpo.audit.open import open_run
    from larpo.audit.pack import write
    from larpo.workspace import project_folder
    from larpo.workspace.git import git

    with one_line_errors(), open_run(project_folder(), run) as opened:
        name = opened.folder.name if run is None or Path(run).is_dir() else run.rsplit("/", 1)[-1]
        head = git(opened.folder, "rev-parse", "HEAD", check=False)[:12] or "no-commit"
        file, limit = out or Path(f"{name}-{head}.larpo.tar"), int(data_limit * write.GIB)
        lines = write.pack(opened, file, checkpoints=checkpoints, data_limit=limit).lines()
    print("\n".join(lines))


def unpack(
    file: Path = typer.Argument(help="what `larpo pack` made"), folder: Path = typer.Argument(help="a new folder")
) -> None:
    """Open a packed run as a project of its own, every byte checked, nothing in it executed."""
    from larpo.audit.pack import unpack as opening

    with one_line_errors():
        done = opening.unpack(file, folder)
    print("\n".join([*done.lines(), f"next: larpo audit {done.folder}"]))


def print_difference(run_a: str, run_b: str, as_json: bool) -> bool:
    """Print why two runs differ; whether they are equal.

    Runs are folders, Git revisions or names of experiments of the project around the working folder.
    """
    from larpo.audit.diff.explain import explain
    from larpo.audit.open import open_run
    from larpo.workspace import project_folder

    project = project_folder()
    with one_line_errors(), open_run(project, run_a) as a, open_run(project, run_b) as b:
        difference = explain(a, b)
    difference.a, difference.b = run_a, run_b
    print(json.dumps(difference.record(), indent=1, ensure_ascii=False) if as_json else "\n".join(difference.lines()))
    return difference.equal
