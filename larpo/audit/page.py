"""The audit as one page that opens from disk, and as JSON."""

from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from larpo.audit.card import Answer
from larpo.audit.results import PARTS, Check, verdict_of

SHOWN = 20  # failures per check on the page and in JSON; the count is always there


def record(facts: dict[str, Any], checks: list[Check], answers: list[Answer]) -> dict[str, Any]:
    """The audit as a JSON tree. `facts`: the run, when and with what it was audited.

    Texts of the run's (paths, names of packages) may steer a terminal; characters that could are spaces here.
    """
    verdict, first = verdict_of(checks)
    tree = {
        **facts,
        "verdict": verdict,
        "first": first,
        "holds": verdict != "does not hold",
        "checks": [c.record() | {"failures": list(c.failures[:SHOWN]), "failed": len(c.failures)} for c in checks],
        "card": [a.record() for a in answers],
    }
    return _printable(tree)


def _printable(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _printable(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_printable(value) for value in tree]
    return "".join(c if c.isprintable() else " " for c in tree) if isinstance(tree, str) else tree


def render(audit: dict[str, Any]) -> str:
    """HTML of what `record` made; every text is escaped, nothing is fetched."""
    template = resources.files("larpo.audit").joinpath("page.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    parts = [(p, question, [c for c in audit["checks"] if c["part"] == p]) for p, question in PARTS.items()]
    return environment.from_string(template).render(audit=audit, parts=[p for p in parts if p[2]])
