"""The command `larpo exp`: a run with other parameters that leaves this folder as it is."""

import sys
from pathlib import Path

import typer

from larpo.errors import UserError


def exp(
    overrides: list[str] = typer.Option(
        [], "--set", "-S", metavar="key=value", help="a parameter, as for `dvc exp run -S`; repeat for more"
    ),
    overlays: list[str] = typer.Option(
        [],
        "--with",
        metavar="FILE",
        help="sections to lay over params.yaml, such as configs/params-tiny.yaml; repeat for more",
    ),
    iterations: int | None = typer.Option(None, help="the first N iterations of params.yaml, or more"),
    name: str | None = typer.Option(None, help="of the experiment; default: what was set"),
) -> None:
    """Run with other parameters, in a clone that shares the cache, and keep the result as a DVC experiment.

    params.yaml, data and report here stay as they are. Stopped, or failed, the same command goes on where it was; of a
    run that was refused before anything was made, nothing stays.
    """
    from larpo.report.summary import print_scores
    from larpo.workspace import project_folder
    from larpo.workspace.clone import Workspace, free_name
    from larpo.workspace.dvc import read_graph
    from larpo.workspace.overrides import changed_params
    from larpo.workspace.processes import Stopped, end_on_signals
    from larpo.workspace.repro import NodeFailed, Repro

    end_on_signals()
    project = project_folder()
    params = changed_params(project, iterations, overrides=overrides, overlays=overlays)
    if params is None:
        raise UserError("larpo exp: nothing differs from params.yaml; set something by -S, or run `dvc repro`")
    set_to = [(key.rpartition(".")[2], value) for key, _, value in (o.partition("=") for o in overrides)]
    told = [*(Path(file).stem for file in overlays), *(f"{key} {value}" for key, value in set_to)]
    told += [f"iterations {iterations}"] if iterations else []
    workspace = Workspace(project, free_name(project, name or " ".join(told)))
    resumed = workspace.open(params)
    print(f"{workspace.name}: {'goes on' if resumed else 'runs'} in {workspace.clone}", flush=True)
    runner = Repro(workspace.folder)
    try:
        nodes = list(read_graph(workspace.folder))
        runner.run_all(nodes, lambda line: print(line, flush=True))
    except NodeFailed as error:
        print(f"failed: {error}{workspace.give_up(runner)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except UserError as error:
        raise UserError(f"{error}{workspace.give_up(runner)}") from None
    except (KeyboardInterrupt, Stopped):
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        runner.stop()
    workspace.save(nodes)
    if (report := workspace.close()) is not None:
        print_scores(report / "scores.json")
        print(report / "index.html")
    print(f"compare: dvc metrics diff HEAD {workspace.name}; take it over: dvc exp apply {workspace.name}")
    print("back to what is committed: git checkout -- . && dvc checkout")
