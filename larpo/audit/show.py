"""The audit in the terminal: the verdict, one line per check, the first things that do not hold below each part."""

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from larpo.errors import printable

STYLES = {
    "holds": "green",
    "fails": "bold red",
    "counted": "cyan",
    "not checked": "yellow",
    "yes": "green",
    "partly": "yellow",
    "no": "red",
    "does not hold": "bold red",
    "holds, but not everything was checked": "bold yellow",
}
FIRST = 3  # failures per check in the terminal; the page has more


def print_audit(audit: dict[str, Any], console: Console | None = None) -> None:
    """The verdict, then a line per check, cut to the terminal's width; a pipe gets 120 columns."""
    console, audit = console or Console(highlight=False), printable_tree(audit)
    if not console.is_terminal:
        console.width = 120
    first = f": {audit['first']}" if audit["first"] else ""
    console.print(Text(f"{audit['verdict']}{first}", style=STYLES[audit["verdict"]]), soft_wrap=True)
    if "seed" in audit:
        console.print(f"drawn by seed {audit['seed']} (--seed), {audit['sample']} rows of a table (--sample)")
    for part in dict.fromkeys(c["part"] for c in audit["checks"]):
        checks = [c for c in audit["checks"] if c["part"] == part]
        _table(console, part, [(c["name"], c["verdict"], c["detail"]) for c in checks])
        for check in checks:
            for line in check["failures"][:FIRST]:
                console.print(Padding(Text(line, style="red"), (0, 0, 0, 4)))
            if check["failed"] > FIRST:
                console.print(f"    and {check['failed'] - FIRST} more")
            for line in check["behind"] if check["verdict"] != "not checked" else ():
                console.print(Padding(Text(f"not checked: {line}", style="yellow"), (0, 0, 0, 4)))
    answers = [(a["variable"], a["answer"], "; ".join(a["missing"] or a["evidence"])) for a in audit["card"]]
    if answers:
        _table(console, "reproducibility card", answers)


def printable_tree(tree: Any) -> Any:
    """JSON whose texts may be printed, whoever wrote them."""
    if isinstance(tree, dict):
        return {key: printable_tree(value) for key, value in tree.items()}
    return (
        [printable_tree(x) for x in tree]
        if isinstance(tree, list)
        else printable(tree)
        if isinstance(tree, str)
        else tree
    )


def _table(console: Console, title: str, rows: list[tuple[str, str, str]]) -> None:
    """Names and verdicts whole, the detail cut to what is left of the line."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, verdict, detail in rows:
        table.add_row(Text(name), Text(verdict, STYLES[verdict]), Text(detail, no_wrap=True, overflow="ellipsis"))
    console.print(Text(f"\n{title}", style="bold"))
    console.print(Padding(table, (0, 0, 0, 2)))
