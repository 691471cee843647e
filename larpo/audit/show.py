"""The audit in the terminal: one line per check, the first thing that does not hold below it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

STYLES = {
    "holds": "green",
    "fails": "bold red",
    "counted": "cyan",
    "not checked": "yellow",
    "yes": "green",
    "partly": "yellow",
    "no": "red",
}
FIRST = 3  # failures per check in the terminal; the page has more


def print_audit(audit: dict[str, Any], console: Console | None = None) -> None:
    """One line per check, cut to the terminal's width; a pipe gets 120 columns."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    for part in dict.fromkeys(c["part"] for c in audit["checks"]):
        checks = [c for c in audit["checks"] if c["part"] == part]
        console.print(Text(f"\n{part}", style="bold"))
        _table(console, [(c["name"], c["verdict"], c["detail"]) for c in checks])
        for check in (c for c in checks if c["failures"]):
            for line in check["failures"][:FIRST]:
                console.print(Padding(Text(line, style="red"), (0, 0, 0, 4)))
            if check["failed"] > FIRST:
                console.print(f"    and {check['failed'] - FIRST} more")
    console.print(Text("\nreproducibility card", style="bold"))
    told = [(a["variable"], a["answer"], "; ".join(a["missing"] or a["evidence"])) for a in audit["card"]]
    _table(console, told)
    failed = [c for c in audit["checks"] if c["verdict"] == "fails"]
    if failed:
        console.print(Text(f"\ndoes not hold: {failed[0]['name']}: {failed[0]['failures'][0]}", style="bold red"))
    else:
        unasked = sum(c["verdict"] == "not checked" for c in audit["checks"])
        console.print(
            "\neverything that was checked holds" + (f"; {unasked} not checked, see above" if unasked else "")
        )


def _table(console: Console, rows: list[tuple[str, str, str]]) -> None:
    """Names and verdicts whole, the detail cut to what is left of the line."""
    wide, words = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    for name, verdict, detail in rows:
        line = Text(f"  {name:{wide}}  ") + Text(f"{verdict:{words}}", style=STYLES[verdict]) + Text(f"  {detail}")
        line.truncate(console.width, overflow="ellipsis")
        console.print(line, no_wrap=True)
