"""The commands `larpo audit`, `larpo pack` and `larpo unpack`."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from larpo.audit.draw import ROWS, draw
from larpo.errors import UserError, one_line, printable

RUN = typer.Argument(None, help="a folder, pack, Git revision or experiment; default: this project")


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Exit code 2 with one line where the block refuses its input."""
    try:
        yield
    except (UserError, OSError, RuntimeError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None


def audit_command(
    run: str = RUN,
    node: list[str] = typer.Option([], help="execute this node again; repeat for more"),
    every: bool = typer.Option(False, "--all", help="execute every node again"),
    again: bool | None = typer.Option(
        None,
        "--again/--no-again",
        help="execute nodes again: trainings, what nothing else checks, and one by lot; default: if the run is this "
        "project's own",
    ),
    seed: int | None = typer.Option(None, min=0, help="of what is drawn by lot; default: a random one, printed"),
    sample: int = typer.Option(ROWS, min=1, help="rows by lot of each table of a model's outputs or numbers"),
    studies: bool = typer.Option(False, "--studies", help="not a run but this project's studies"),
    diff: tuple[str, str] | None = typer.Option(None, metavar="RUN_A RUN_B", help="why two runs' numbers differ"),
    out: Path = typer.Option(None, help="folder of audit.html and audit.json; default: report/ of this project"),
    as_json: bool = typer.Option(False, "--json", help="print JSON"),
) -> None:
    """Whether a finished run is what it says it is: bytes, lineage, science, nodes executed again.

    Exit code 0 if it holds, 1 if something does not, 2 on bad input, 3 if all that was checked holds but something
    behind a reported number was not. With --diff: 0 if the runs are equal, 1 if they differ.
    """
    from larpo.audit.results import STATUS
    from larpo.audit.run import PAGE, Selection, audit
    from larpo.audit.show import print_audit
    from larpo.workspace import project_folder

    project = project_folder()
    if diff is not None:
        with refused():
            if run or node or every or again is not None:
                raise UserError(
                    "larpo audit: --diff compares two runs and takes neither a run nor nodes; leave them out"
                )
            status = print_diff(project, *diff, as_json)
        raise typer.Exit(status)  # which is a RuntimeError
    if studies:
        with refused():
            if run or node or every or again is not None:
                raise UserError("larpo audit: --studies takes neither a run nor nodes; leave them out")
            from larpo.audit.studies import audit_studies

            tree = audit_studies(project)
        print(json.dumps(tree, indent=1, ensure_ascii=False)) if as_json else print_audit(tree)
        raise typer.Exit(STATUS[tree["verdict"]])
    with refused():
        if sum((bool(node), every, again is False)) > 1:
            raise UserError("larpo audit: --node, --all and --no-again exclude each other; give one")
        folder, selection = out or project / "report", Selection(tuple(node), every, again, draw(seed, sample))
        tree = audit(project, run, selection, folder, lambda line: print(printable(line), file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(tree, indent=1))
    else:
        print_audit(tree)
        print(folder / PAGE)
    raise typer.Exit(STATUS[tree["verdict"]])


def print_diff(project: Path, run_a: str, run_b: str, as_json: bool) -> int:
    """Print why two runs differ. As `diff` ends: 0 no difference, 1 some.

    Runs are folders, packs, Git revisions or names of experiments of `project`.
    """
    from larpo.audit.diff.explain import explain
    from larpo.audit.find import open_run

    with open_run(project, run_a) as a, open_run(project, run_b) as b:
        diff = explain(a, b)
    diff.a, diff.b = run_a, run_b
    print(json.dumps(diff.record(), indent=1) if as_json else "\n".join(map(printable, diff.lines())))
    return 0 if diff.equal else 1


def pack_command(
    run: str = RUN,
    out: Path = typer.Option(None, "--out", help="the file to write; default: RUN-COMMIT.larpo.tar in this folder"),
    checkpoints: bool = typer.Option(True, help="with --no-checkpoints: without the folders that hold weights"),
    data_limit: float = typer.Option(1.0, min=0, help="GiB up to which a dataset of one's own goes in"),
) -> None:
    """Make one file of a finished run, with all that `larpo audit` needs; the same run makes the same bytes."""
    from larpo.audit.find import open_run
    from larpo.audit.pack.write import GIB, pack
    from larpo.workspace import project_folder
    from larpo.workspace.git import find_commit

    with refused(), open_run(project_folder(), run) as packed:
        name = packed.folder.name if run is None or Path(run).is_dir() else run.rsplit("/", 1)[-1]
        head = (find_commit(packed.folder, "HEAD") or "no-commit")[:12]
        file = out or Path(f"{name}-{head}.larpo.tar")
        lines = pack(packed, file, checkpoints=checkpoints, data_limit=int(data_limit * GIB)).lines()
    print("\n".join(lines))


def unpack_command(
    file: Path = typer.Argument(help="what `larpo pack` made"), folder: Path = typer.Argument(help="a new folder")
) -> None:
    """Open a packed run as a project of its own, every byte checked, nothing in it executed."""
    from larpo.audit.pack.unpack import unpack

    with refused():
        unpacked = unpack(file, folder)
    print("\n".join([*unpacked.lines(), f"next: larpo audit {unpacked.folder}"]))
