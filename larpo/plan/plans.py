"""What a plan is: nodes with what each needs, checks, sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from larpo.plan.architectures import Architecture
from larpo.plan.assumptions import Assumptions
from larpo.plan.formula import Estimate, total


@dataclass(frozen=True)
class JudgeCalls:
    """What an evaluation asks of a judge; `prompt` and `completion` are tokens of one call."""

    judge: str
    model: str
    calls: Estimate
    prompt: Estimate
    completion: Estimate
    cost: Estimate


@dataclass(frozen=True)
class NodePlan:
    """One node of the graph. `memory` is per GPU; empty where the model is not known or the node needs no GPU."""

    name: str
    model: str | None = None
    gpus: int = 0
    sharding: str = ""
    memory: dict[str, Estimate] = field(default_factory=dict)
    sample_tokens: Estimate | None = None
    train_tokens: Estimate | None = None
    judge: JudgeCalls | None = None
    hours: Estimate | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What precedes `@`."""
        return self.name.partition("@")[0]

    @property
    def memory_total(self) -> float | None:
        return total(self.memory.values()) if self.memory else None


@dataclass(frozen=True)
class Check:
    """`ok` False: the run would fail or not fit. None: it runs, but somebody should know."""

    ok: bool | None
    line: str


@dataclass(frozen=True)
class Totals:
    """Sums over nodes, as far as the numbers are known. Clock hours: one node after another, each on its GPUs."""

    nodes: int
    hours: float
    clock_hours: float
    sample_tokens: float
    train_tokens: float
    judge_calls: float
    judge_cost: float
    unknown: int  # nodes that have a number which is not known

    @classmethod
    def of(cls, nodes: Iterable[NodePlan]) -> Totals:
        nodes = list(nodes)
        sums = {what: sum(e.value for e in estimates(nodes, what) if e.value is not None) for what in SUMMED}
        clock = sum(n.hours.value / max(n.gpus, 1) for n in nodes if n.hours and n.hours.value is not None)
        unknown = sum(any(e.value is None for what in SUMMED for e in estimates([n], what)) for n in nodes)
        return cls(nodes=len(nodes), clock_hours=clock, unknown=unknown, **sums)


SUMMED = ("hours", "sample_tokens", "train_tokens", "judge_calls", "judge_cost")


def estimates(nodes: Iterable[NodePlan], what: str) -> list[Estimate]:
    """One of the summed numbers, of the nodes that have it."""
    owners = [n.judge for n in nodes] if what.startswith("judge") else nodes
    found = (getattr(owner, what.removeprefix("judge_"), None) for owner in owners)
    return [estimate for estimate in found if estimate is not None]


@dataclass(frozen=True)
class Plan:
    nodes: tuple[NodePlan, ...]
    checks: tuple[Check, ...]
    architectures: tuple[Architecture, ...]
    assumptions: Assumptions

    @property
    def failed(self) -> list[str]:
        return [c.line for c in self.checks if c.ok is False]

    @property
    def totals(self) -> Totals:
        return Totals.of(self.nodes)

    def unknown(self, what: str) -> int:
        """Nodes for which one of the summed numbers is not known."""
        return sum(e.value is None for e in estimates(self.nodes, what))
