"""What a check of the audit found: one record, the same in the terminal, in JSON and on the page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["holds", "fails", "counted", "not checked"]
"""counted: a number for the reader to judge, which cannot fail."""
PARTS = {
    "bytes": "Is every file what dvc.lock says?",
    "lineage": "Does every input come from the recorded output, commit or source?",
    "science": "Do the numbers follow from the tables?",
    "again": "Does a node executed again make the same?",
}


@dataclass(frozen=True)
class Check:
    """One question, asked of `checked` things.

    `detail` is one line: what was compared, or why it could not be. `failures` names what does not hold, the first
    in the order of the graph first: a node, a file with its byte, a table with its row.
    """

    part: str
    name: str
    verdict: Verdict
    checked: int
    detail: str
    failures: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"failures": list(self.failures)}


def holds(part: str, name: str, checked: int, detail: str) -> Check:
    return Check(part, name, "holds", checked, detail)


def fails(part: str, name: str, checked: int, detail: str, failures: Sequence[str]) -> Check:
    return Check(part, name, "fails", checked, detail, tuple(failures))


def counted(part: str, name: str, checked: int, detail: str) -> Check:
    return Check(part, name, "counted", checked, detail)


def unchecked(part: str, name: str, reason: str) -> Check:
    """A question that could not be asked; it neither holds nor fails, and is shown."""
    return Check(part, name, "not checked", 0, reason)


def conclude(part: str, name: str, checked: int, detail: str, failures: Sequence[str]) -> Check:
    """Holds where nothing failed; nothing to check is `not checked`, never `holds`."""
    if failures:
        return fails(part, name, checked, detail, failures)
    return holds(part, name, checked, detail) if checked else unchecked(part, name, detail)


def all_hold(checks: Sequence[Check]) -> bool:
    """Whether an audit may end with 0: something was checked and nothing failed."""
    return any(c.verdict == "holds" for c in checks) and all(c.verdict != "fails" for c in checks)
