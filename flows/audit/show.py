"""The audit in the terminal: one line per check, the first thing that does not hold below it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

STYLES = {
    "holds": "green",
    "fails": "bold red",
    "not checked": "yellow",
    "yes": "green",
    "partly": "yellow",
    "no": "red",
}
FIRST = 3  # failures per check in the terminal; the page has more


def print_audit(audit: dict[str, Any], console: Console | None = None) -> None:
    console = console or Console(highlight=False, soft_wrap=True)
    for part in dict.fromkeys(c["part"] for c in audit["checks"]):
        console.print(Text(f"\n{part}", style="bold"))
        table = Table.grid(padding=(0, 2))
        for check in (c for c in audit["checks"] if c["part"] == part):
            table.add_row(
                f"  {check['name']}", Text(check["verdict"], style=STYLES[check["verdict"]]), _cut(check["detail"])
            )
        console.print(table)
        for check in (c for c in audit["checks"] if c["part"] == part and c["failures"]):
            for line in check["failures"][:FIRST]:
                console.print(Padding(Text(line, style="red"), (0, 0, 0, 4)))
            if check["failed"] > FIRST:
                console.print(f"    and {check['failed'] - FIRST} more")
    console.print(Text("\nreproducibility card", style="bold"))
    table = Table.grid(padding=(0, 2))
    for answer in audit["card"]:
        told = answer["missing"] or answer["evidence"]
        table.add_row(
            f"  {answer['variable']}",
            Text(answer["answer"], style=STYLES[answer["answer"]]),
            _cut(told[0] if told else ""),
        )
    console.print(table)
    failed = [c for c in audit["checks"] if c["verdict"] == "fails"]
    if failed:
        console.print(f"\ndoes not hold: {failed[0]['name']}: {failed[0]['failures'][0]}")
    else:
        unasked = sum(c["verdict"] == "not checked" for c in audit["checks"])
        console.print(
            "\neverything that was checked holds" + (f"; {unasked} not checked, see above" if unasked else "")
        )


def _cut(text: str, width: int = 100) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
