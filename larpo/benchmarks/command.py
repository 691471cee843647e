"""The command `larpo score`."""

import json
from pathlib import Path

import typer

from larpo.benchmarks import score_file
from larpo.errors import UserError

SCORE_HELP = """Score outputs that exist already; prints the scores as JSON.

\b
BENCHMARK     OUTPUTS                                                        OPTIONS
gsm8k         JSON Lines with question, answer, response
math          JSON Lines with problem, answer or solution, response
alpaca_eval   annotations as AlpacaEval publishes them (JSON list with       --baseline FILE --data FILE
              instruction, output_1, output_2, preference from 1 to 2,       --df-gamed FILE
              null or NaN where there is none), in any order, all or some    --instruction-difficulty FILE
mixeval       JSON Lines with id and response, and problem_type unless the   --data FOLDER --parser rule|model
mixeval_hard  file's name says it (free-form, close_freeform, …); or a       --unparsed wrong|random --seed N
              folder with both. Rows may carry the item itself (target,      --judge-model NAME --judge-url URL
              options, …); otherwise --data names the folder that has it

Files may be JSON lists or JSON Lines, and gzipped; a null response is an empty one.
--data of mixeval: the folder with free-form.json and multiple-choice.json of the release that the ids belong to.
alpaca_eval finds an instruction's difficulty by its text among AlpacaEval's 805 (805 rows without texts stand in its
order); with others it gives the win rate alone, and says why. --data: a file that all instructions have to be in.
Length-controlled win rates need --df-gamed (the hub's df_gamed.csv; without it, the hub itself is asked);
--instruction-difficulty replaces its column of that name. Exit code 2 with one line on bad input.
"""


def score(
    context: typer.Context,
    benchmark: str = typer.Argument(help="a benchmark's name, see above"),
    outputs: Path = typer.Argument(help="the outputs to score"),
) -> None:
    print(json.dumps(score_file(benchmark, outputs, **options(context.args)), indent=1, ensure_ascii=False))


def options(arguments: list[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as keys and values."""
    pairs: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            raise UserError(f"larpo score: {name!r} is not expected here; expected --option value")
        if not equals and (value := next(rest, None)) is None:
            raise UserError(f"larpo score: {name} expects a value")
        pairs[name[2:].replace("-", "_")] = value
    return pairs
