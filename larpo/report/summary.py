"""`python -m larpo.report.summary`: the scores of the last report as a table in the terminal."""

import io
import sys
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from larpo.config.params import policy_key
from larpo.errors import UserError, one_line
from larpo.report.read import read_json
from larpo.report.write import PAGE, SCORES

NONE = "–"


def estimate(entry: dict[str, Any], name: str, value: str | None = None) -> str:
    """`31.2 (25.9–37.1)` in percent; without an interval the value alone."""
    found, low, high = entry.get(value or name), entry.get(f"{name}_low"), entry.get(f"{name}_high")
    if found is None:
        return NONE
    text = f"{100 * found:.1f}"
    return text if None in (low, high) else f"{text} ({100 * low:.1f}–{100 * high:.1f})"


def table(benchmark: str, policies: dict[str, dict[str, Any]]) -> Table:
    """One benchmark, a row per policy."""
    if all(entry.get("greedy_accuracy") is None for entry in policies.values()):
        return own_score(benchmark, policies)
    budgets = sorted({entry["k"] for entry in policies.values() if entry.get("k") is not None})
    out = Table(box=SIMPLE_HEAD, title=f"{benchmark}: % of items, with 95 % intervals", title_justify="left")
    out.add_column("Policy", justify="right")
    k = "/".join(map(str, budgets)) or "k"
    for name in ("Greedy", "Pass@1", f"Pass@{k}", "Tokens", "Reward"):
        out.add_column(name, justify="right", no_wrap=True)
    for policy in sorted(policies, key=policy_key):
        entry = policies[policy]
        length, reward = entry.get("mean_length"), entry.get("mean_reward")
        out.add_row(
            policy,
            estimate(entry, "greedy", "greedy_accuracy"),
            estimate(entry, "pass_1"),
            estimate(entry, "pass_k"),
            NONE if length is None else f"{length:.1f}",
            NONE if reward is None else f"{reward:.3f}",
        )
    return out


def own_score(benchmark: str, policies: dict[str, dict[str, Any]]) -> Table:
    """A benchmark with a score of its own instead of right and wrong answers."""
    out = Table(box=SIMPLE_HEAD, title=f"{benchmark}: %, with 95 % intervals", title_justify="left")
    for name in ("Policy", "Score", "Unparsed", "Cut off", "Tokens"):
        out.add_column(name, justify="right", no_wrap=True)
    for policy in sorted(policies, key=policy_key):
        entry = policies[policy]
        length = entry.get("mean_length")
        cells = [estimate(entry, name) for name in ("score", "unparsed", "truncated")]
        out.add_row(policy, *cells, NONE if length is None else f"{length:.1f}")
    return out


def markdown(scores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The same tables as Markdown, `scores` as report/scores.json holds them."""
    console = Console(file=io.StringIO(), width=200)
    for benchmark, policies in scores.items():
        rows = table(benchmark, policies)
        console.print(f"## {rows.title}\n", highlight=False)
        rows.box, rows.title = MARKDOWN, None
        console.print(rows)
    return console.file.getvalue()


def text(scores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The tables as plain text, without a line of spaces."""
    console = Console(file=io.StringIO(), width=88)
    for benchmark, policies in scores.items():
        console.print(table(benchmark, policies))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines() if line.strip())


def main() -> None:
    """Print per policy: greedy accuracy, Pass@1, Pass@k, mean response length, mean reward."""
    for path in (SCORES, PAGE):
        if not Path(path).is_file():
            raise UserError(f"{path}: not found; run `dvc repro report` from the project's folder")
    print_scores(SCORES)
    print(PAGE)


def print_scores(path: str | Path) -> None:
    """The tables of a report's scores.json."""
    console = Console(highlight=False)
    console.width = max(console.width, 88)  # a narrower table would lose its figures
    for benchmark, policies in read_json(path).items():
        console.print(table(benchmark, policies))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
