"""The command `larpo`: what is done outside the graph. Each product has its own commands."""

import sys
from typing import Any

import typer
from click import Context
from typer.core import TyperGroup

from larpo.audit.command import audit_command, pack_command, unpack_command
from larpo.benchmarks.command import SCORE_HELP, score
from larpo.errors import MachineError, UserError, one_line
from larpo.plan.command import plan, study_command
from larpo.workspace import project_folder
from larpo.workspace.command import exp
from larpo.workspace.processes import end_on_signals


class OneLineErrors(TyperGroup):
    """Bad input is one line and exit code 2; what only fails now, or here, exit code 1."""

    def invoke(self, context: Context) -> Any:
        try:
            return super().invoke(context)
        except (UserError, MachineError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="LARPO: alignment from ranked lists. The pipeline itself is `dvc repro`.",
)


def run_study(*arguments: Any) -> dict[str, str]:
    end_on_signals()
    try:
        from flows.study import StudyFailed, run

        return run(*arguments)
    except KeyboardInterrupt:
        print("stopped; the same command runs what is missing", file=sys.stderr)
        raise typer.Exit(130) from None
    except (StudyFailed, RuntimeError) as error:
        print(f"failed: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from None


app.command(help=SCORE_HELP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(score)
app.command("audit")(audit_command)
app.command("exp")(exp)
app.command("plan")(plan)
app.command("study")(study_command(project_folder, run_study))
app.command("pack")(pack_command)
app.command("unpack")(unpack_command)

if __name__ == "__main__":
    app()
