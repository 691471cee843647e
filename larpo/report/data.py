"""What the report shows, as plain values, and the statistics that it derives from tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from larpo.statistics import pass_at_n, share_interval

Interval = Callable[[np.ndarray], tuple[float, float]]
PLAIN = ("mean_length", "mean_reward", "truncated", "unparsed", "length_reward_correlation")
"""Measures of a checkpoint that have no interval."""
HEADLINES = ("overall", "lc_win_rate")
"""Scores of a benchmark's own that stand for it; its metrics file holds them in the order of the alphabet."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; a bound is None where it is not finite or not known."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of_mean(cls, values: np.ndarray, interval: Interval) -> Estimate:
        """Of the mean of (N,) values."""
        return cls(float(values.mean()), *map(_finite, interval(values)))

    @classmethod
    def read(cls, entry: dict[str, Any] | None, key: str = "value") -> Estimate | None:
        """As a metrics file holds it; None where it does not."""
        value = _finite((entry or {}).get(key))
        return None if value is None else cls(value, _finite(entry.get("low")), _finite(entry.get("high")))

    def bounds(self) -> tuple[float | None, float | None]:
        """The interval inside [0, 1], for drawing: a normal interval of a share can reach past it."""
        return (None if self.low is None else max(self.low, 0.0), None if self.high is None else min(self.high, 1.0))


def flat(name: str, estimate: Estimate | None, value: str = "") -> dict[str, float | None]:
    """An estimate under plain names, its value as `name` unless `value` says otherwise; nulls where there is none."""
    numbers = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip((value or name, f"{name}_low", f"{name}_high"), numbers, strict=True))


@dataclass(frozen=True)
class RecallPoint:
    n: int
    estimate: Estimate


@dataclass(frozen=True)
class Spread:
    """Percentiles of a distribution."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclass(frozen=True)
class Strategy:
    """One inference strategy on one checkpoint: its accuracy, and the tokens that it generates per item."""

    strategy: str
    n: int
    temperature: float
    estimate: Estimate | None
    tokens: float


@dataclass(frozen=True)
class PolicyScore:
    """One checkpoint on one benchmark; None where the benchmark does not measure it."""

    policy: str
    items: int | None
    sampled_items: int | None
    samples: int | None
    temperature: float | None
    greedy: Estimate | None
    passes: dict[int, Estimate]
    mean_reward: float | None
    mean_length: float | None
    truncated: float | None
    unparsed: float | None
    length_reward_correlation: float | None
    scores: dict[str, Estimate] = field(default_factory=dict)  # the benchmark's own, the headline first
    strategies: list[Strategy] = field(default_factory=list)
    recall: list[RecallPoint] = field(default_factory=list)
    lengths: Spread | None = None
    remark: str | None = None  # what the benchmark says of its scores

    @property
    def k(self) -> int | None:
        """Largest N that Pass@N is measured at."""
        return max(self.passes, default=None)

    def measures(self) -> dict[str, Estimate]:
        """Right answers and the benchmark's own scores under the names that the page shows."""
        passes = {f"Pass@{n}": self.passes[n] for n in sorted({1, self.k}) if n in self.passes} if self.k else {}
        own = {name.replace("_", " "): estimate for name, estimate in self.scores.items()}
        return ({} if self.greedy is None else {"Greedy accuracy": self.greedy}) | passes | own

    def flat(self) -> dict[str, Any]:
        """The numbers under plain names, for `scores.json` and `scores.csv`."""
        out: dict[str, Any] = {"items": self.items, "k": self.k}
        out |= flat("greedy", self.greedy, "greedy_accuracy")
        out |= flat("pass_1", self.passes.get(1)) | flat("pass_k", self.passes.get(self.k))
        out |= flat("score", next(iter(self.scores.values()), None))
        return out | {name: getattr(self, name) for name in PLAIN}


@dataclass(frozen=True)
class BenchmarkScores:
    name: str
    kind: str
    policies: list[PolicyScore]

    def measures(self) -> list[str]:
        """Names of what is measured, the headline first."""
        return list(dict.fromkeys(name for p in self.policies for name in p.measures()))

    def remarks(self) -> list[str]:
        return list(dict.fromkeys(p.remark for p in self.policies if p.remark))

    def strategy_rows(self) -> list[tuple[str, Strategy]]:
        return [(p.policy, s) for p in self.policies for s in p.strategies]


@dataclass(frozen=True)
class BestOfN:
    """What a reward picks among N samples: the picks' true score, the best score there is, the picks' reward."""

    name: str
    policy: str
    benchmark: str
    reward: str
    score: list[RecallPoint]
    upper: list[RecallPoint]
    rewards: list[RecallPoint]


def best_of_n_curves(name: str, metrics: dict[str, Any]) -> BestOfN:
    """The metrics file of node best_of_n@NAME as one record."""

    def points(key: str) -> list[RecallPoint]:
        found = ((int(p["n"]), Estimate.read(p[key])) for p in metrics["points"])
        return [RecallPoint(n, e) for n, e in found if e is not None]

    facts = (metrics["policy"], metrics["benchmark"], metrics["reward"])
    return BestOfN(name, *facts, points("score"), points("upper"), points("reward"))


@dataclass(frozen=True)
class ExampleResponse:
    rank: int
    text: str
    reward: float
    role: str
    temperature: float | None  # None for a gold solution
    iteration: int
    correct: bool | None
    truncated: bool
    source: str = "policy"  # `gold`, or `another prompt`'s response


@dataclass(frozen=True)
class Example:
    """One training list with its prompt, best response first."""

    messages: list[tuple[str, str]]
    answer: str | None
    responses: list[ExampleResponse]


@dataclass(frozen=True)
class Iteration:
    """What iteration s sampled, made into lists and trained on."""

    name: str
    previous: str
    temperatures: list[float]
    prompts: int
    rewards: np.ndarray  # (R,) rewards of the responses sampled in this iteration
    correct: float | None  # share of them; None where the reward cannot tell
    lengths: Spread | None  # tokens of the same responses
    lists: int
    list_rows: int
    data_hash: str  # of the lists' file
    step0_loss: float | None
    step0_expected: float | None
    training: dict[str, list[tuple[int, float]]]  # metric → (optimizer step, value)
    examples: list[Example]
    hardness: list[Any] = field(default_factory=list)  # larpo.report.hardness.Hardness, per source of negatives
    drift: dict[str, float] | None = None  # of the sampler's log-probabilities; larpo.training.drift.Drift
    exactness: dict[str, float] = field(default_factory=dict)  # by node, nats per token; larpo.training.exactness
    computed: str | None = None  # how training computes the model; larpo.training.forward.Way
    weights_changed: float | None = None  # share of them that training moved
    gold: tuple[int, int] = (0, 0)  # gold solutions of this iteration's prompts, and those that the reward calls wrong


@dataclass(frozen=True)
class NodeRecord:
    """A node of the graph, where its picture has it, and its manifest (None where there is none)."""

    stage: str
    name: str  # its kind
    row: str  # the policy it makes or measures
    outputs: tuple[str, ...]
    manifest: dict[str, Any] | None
    column: str = ""
    label: str | None = None  # in place of the stage's name


@dataclass(frozen=True)
class ReportData:
    title: str
    settings: dict[str, Any]
    benchmarks: list[BenchmarkScores]
    iterations: list[Iteration]
    nodes: list[NodeRecord]
    columns: list[str] = field(default_factory=list)  # of the graph's picture
    retrieval: dict[str, list[RecallPoint]] = field(default_factory=dict)  # retriever and kind of hit → Recall@N
    best_of_n: list[BestOfN] = field(default_factory=list)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def policy_score(metrics: dict[str, Any], evaluations: pd.DataFrame) -> PolicyScore:
    """A checkpoint's metrics file and its `evaluations` table as one record."""
    first = evaluations[evaluations["turn"] == 0]
    passes = {int(n): Estimate.read(entry) for n, entry in (metrics.get("pass") or {}).items()}
    sampled = first[first["sample"] >= 0]
    outputs = first if sampled.empty else sampled[sampled["temperature"] == sampled["temperature"].iloc[0]]
    scores = metrics.get("scores") or {}
    own = {name: Estimate.read(scores[name]) for name in sorted(scores, key=lambda name: name not in HEADLINES)}
    return PolicyScore(
        policy=str(metrics["policy"]),
        items=metrics.get("items"),
        sampled_items=metrics.get("sampled_items"),
        samples=metrics.get("samples"),
        temperature=metrics.get("temperature"),
        greedy=Estimate.read(metrics.get("greedy"), "accuracy"),
        passes={n: e for n, e in sorted(passes.items()) if e is not None},
        recall=recall_curve(evaluations),
        scores={name: e for name, e in own.items() if e is not None},
        strategies=[
            Strategy(s["strategy"], s["n"], s.get("temperature", 0.0), Estimate.read(s), s["tokens"])
            for s in metrics.get("strategies") or []
        ],
        lengths=spread(outputs["n_tokens"].to_numpy()),
        remark=metrics.get("remark"),
        **{name: _finite(metrics.get(name)) for name in PLAIN},
    )


def retrieval_curve(metrics: dict[str, Any], kind: str) -> list[RecallPoint]:
    """Recall@N of a retriever by `answer` or `gold`; empty where it was not measured."""
    found = ((int(n), Estimate.read(entry)) for n, entry in (metrics.get(kind) or {}).items())
    return [RecallPoint(n, e) for n, e in sorted(found) if e is not None]


def recall_curve(evaluations: pd.DataFrame) -> list[RecallPoint]:
    """Recall@N (= Pass@N) for every N from 1 to the samples per item, with 95 % intervals over items.

    Of the first temperature. Empty where there are no samples, or where scores are graded: only 0 and 1 say right
    or wrong.
    """
    sampled = evaluations[evaluations["sample"] >= 0]
    if len(sampled):
        sampled = sampled[sampled["temperature"] == sampled["temperature"].iloc[0]]
    if sampled.empty or not sampled["score"].isin([0.0, 1.0]).all():
        return []
    group = sampled.groupby("prompt_id", sort=True)["score"]
    samples, correct = group.size().to_numpy(), group.sum().to_numpy().astype(int)
    return [
        RecallPoint(n, Estimate.of_mean(pass_at_n(samples, correct, n), share_interval))
        for n in range(1, int(samples.min()) + 1)
    ]


def spread(values: np.ndarray) -> Spread | None:
    """5th, 25th, 50th, 75th and 95th percentile of (N,) values; None when there are none."""
    if not len(values):
        return None
    return Spread(*(float(q) for q in np.percentile(np.asarray(values, dtype=float), [5, 25, 50, 75, 95])))


def histogram(groups: list[np.ndarray], values_at_most: int = 12, bins: int = 20) -> tuple[list[str], list[np.ndarray]]:
    """Shares of each group in common bins, so that groups can be compared by eye.

    Few distinct values (a rule's 0 and 1) are their own bins; others share `bins` bins of equal width.

    Returns
    -------
    Labels of the bins in rising order, and for each group the shares (bins,), which sum to 1 (to 0 for an
    empty group).
    """
    everything = np.concatenate([np.asarray(g, dtype=float) for g in groups]) if groups else np.empty(0)
    if not len(everything):
        return [], [np.empty(0) for _ in groups]
    distinct = np.unique(everything)
    if len(distinct) <= values_at_most:
        labels = [f"{v:.4g}" for v in distinct]
        counts = [np.array([(np.asarray(g) == v).sum() for v in distinct]) for g in groups]
    else:
        edges = np.histogram_bin_edges(everything, bins=bins)
        labels = [f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges)]
        counts = [np.histogram(g, bins=edges)[0] for g in groups]
    return labels, [c / max(int(c.sum()), 1) for c in counts]
