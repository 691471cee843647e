"""What a plan is: nodes with what each needs, checks, sums."""

from __future__ import annotations

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
class Plan:
    nodes: tuple[NodePlan, ...]
    checks: tuple[Check, ...]
    architectures: tuple[Architecture, ...]
    assumptions: Assumptions

    @property
    def failed(self) -> list[str]:
        return [c.line for c in self.checks if c.ok is False]

    def sum_of(self, what: str) -> tuple[float, int]:
        """(sum, number of nodes for which it is not known) of `hours`, `sample_tokens` or `train_tokens`."""
        found = [e for n in self.nodes if (e := getattr(n, what)) is not None]
        return sum(e.value for e in found if e.value is not None), sum(e.value is None for e in found)

    @property
    def clock_hours(self) -> float:
        """Hours of the GPU nodes run one after another, as far as they are known."""
        return sum(n.hours.value / n.gpus for n in self.nodes if n.hours and n.hours.value is not None)

    @property
    def judge_cost(self) -> tuple[float, int]:
        """(US dollars, number of nodes whose judge has an unknown price)."""
        costs = [n.judge.cost.value for n in self.nodes if n.judge]
        return sum(c for c in costs if c is not None), costs.count(None)
