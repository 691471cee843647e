"""What a check of the audit found, and the verdict on all of them: one record, the same in the terminal, in JSON and on
the page."""

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
    "studies": "Do results follow from the runs, verdicts from the results, and pages from both?",
}
STATUS = {"holds": 0, "does not hold": 1, "holds, but not everything was checked": 3}
"""Verdict on a run → exit status; 2 is wrong input."""


@dataclass(frozen=True)
class Check:
    """One question, asked of `checked` things.

    `detail` is one line: what was compared, or why it could not be. `failures` names what does not hold, the first
    in the order of the graph first: a node, a file with its byte, a table with its row. `behind` says what behind a
    reported number was not checked, whatever the rest of the check found; such a run never just holds.
    """

    part: str
    name: str
    verdict: Verdict
    checked: int
    detail: str
    failures: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"failures": list(self.failures), "behind": list(self.behind)}


def holds(part: str, name: str, checked: int, detail: str) -> Check:
    return Check(part, name, "holds", checked, detail)


def fails(part: str, name: str, checked: int, detail: str, failures: Sequence[str]) -> Check:
    return Check(part, name, "fails", checked, detail, tuple(failures))


def counted(part: str, name: str, checked: int, detail: str) -> Check:
    return Check(part, name, "counted", checked, detail)


def unchecked(part: str, name: str, reason: str, behind: bool = True) -> Check:
    """A question that could not be asked; it neither holds nor fails, and is shown. `behind`: a reported number rests
    on the answer."""
    return Check(part, name, "not checked", 0, reason, behind=(reason,) if behind else ())


def conclude(
    part: str, name: str, checked: int, detail: str, failures: Sequence[str], behind: Sequence[str] = ()
) -> Check:
    """Holds where nothing failed; nothing to check is `not checked`, never `holds`."""
    verdict: Verdict = "fails" if failures else "holds" if checked else "not checked"
    behind = tuple(behind) or ((detail,) if verdict == "not checked" else ())
    return Check(part, name, verdict, checked, detail, tuple(failures), behind)


def verdict_of(checks: Sequence[Check]) -> tuple[str, str]:
    """The verdict on a run, a key of STATUS, and the first thing that fails or was not checked ("" for none)."""
    if failed := next((c for c in checks if c.verdict == "fails"), None):
        return "does not hold", f"{failed.name}: {failed.failures[0]}"
    unasked = [f"{c.name}: {line}" for c in checks for line in c.behind]
    if unasked or not any(c.verdict == "holds" for c in checks):
        more = f" (and {len(unasked) - 1} more)" if len(unasked) > 1 else ""
        return "holds, but not everything was checked", (unasked[0] if unasked else "nothing was") + more
    return "holds", ""
