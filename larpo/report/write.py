"""The report's files: the page, its numbers as JSON, and what `dvc plots` draws as CSV."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from larpo.config.params import Params, policy_key
from larpo.report.data import BenchmarkScores, Iteration
from larpo.report.page import render
from larpo.report.read import read_report

PAGE, SCORES, HARDNESS = "report/index.html", "report/scores.json", "report/hardness.json"
METRICS = "report/metrics.json"
SCORES_CSV, RECALL_CSV, TRAINING_CSV = "report/scores.csv", "report/recall.csv", "report/training.csv"
OUTPUTS = [PAGE, SCORES, HARDNESS, METRICS, SCORES_CSV, RECALL_CSV, TRAINING_CSV]


def write_report(
    params: Params, list_hashes: dict[str, str], place: Callable[[str], Path], settings: dict[str, Any] | None = None
) -> tuple[int, int]:
    """Write every output of the report to where `place` puts it; returns responses read and scores written.

    `list_hashes` and `settings` as `read_report` takes them.
    """
    data = read_report(params, list_hashes, settings)
    scores = {b.name: {p.policy: p.flat() for p in b.policies} for b in data.benchmarks}
    write_json(place(SCORES), scores)
    write_json(place(METRICS), headline(data.benchmarks))
    write_json(place(HARDNESS), {it.name: hardness_entry(it) for it in data.iterations})
    # `dvc plots` cannot choose rows: its files hold the first benchmark of params.yaml, scores.json has all.
    first = data.benchmarks[0]
    write_csv(place(SCORES_CSV), [{"policy": p.policy, "benchmark": first.name} | p.flat() for p in first.policies])
    curve = [
        {"policy": p.policy, "benchmark": first.name, "n": r.n, "recall": r.estimate.value}
        | {"low": r.estimate.low, "high": r.estimate.high}
        for p in first.policies
        for r in p.recall
    ]
    write_csv(place(RECALL_CSV), curve, ["policy", "benchmark", "n", "recall", "low", "high"])
    training = training_rows(data.iterations)
    names = sorted({name for row in training for name in row} - {"iteration", "step"})
    write_csv(place(TRAINING_CSV), training, ["iteration", "step", *names])
    place(PAGE).write_text(render(data), "utf-8")
    return sum(len(it.rewards) for it in data.iterations), sum(map(len, scores.values()))


def headline(benchmarks: list[BenchmarkScores], columns: int = 9) -> dict[str, dict[str, float]]:
    """What `dvc exp show` and `dvc metrics diff` compare runs by, at most `columns` numbers: of each benchmark the last
    policy's score and what it gained on the first; of the first benchmark also Pass@1, mean reward and length."""
    numbers: list[tuple[str, str, float | None]] = []
    for benchmark in benchmarks:
        first, *_, last = [p.flat() for p in sorted(benchmark.policies, key=lambda p: policy_key(p.policy))] * 2
        was, now = (p["greedy_accuracy"] if p["score"] is None else p["score"] for p in (first, last))
        more = ("pass_1", "mean_reward", "mean_length") if benchmark is benchmarks[0] else ()
        gain = None if None in (was, now) else now - was
        numbers += [(benchmark.name, "score", now), (benchmark.name, "gain", gain)]
        numbers += [(benchmark.name, name, last[name]) for name in more]
    out: dict[str, dict[str, float]] = {}
    for benchmark, name, value in [n for n in numbers if n[2] is not None][:columns]:
        out.setdefault(benchmark, {})[name] = value
    return out


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]], header: list[str] | None = None) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def hardness_entry(it: Iteration) -> dict[str, Any]:
    """Source of negatives → temperature (`all`: over all of them) → measures; and the gold solutions."""
    entry: dict[str, Any] = {"gold": it.gold[0], "gold_wrong": it.gold[1], "negatives": {}}
    for h in it.hardness:
        key = "all" if h.temperature is None else f"{h.temperature:g}"
        entry["negatives"].setdefault(h.source, {})[key] = h.flat()
    return entry


def training_rows(iterations: list[Iteration]) -> list[dict[str, Any]]:
    """One row per optimizer step of the whole run; `step` counts on from one iteration to the next."""
    rows, before = [], 0
    for it in iterations:
        steps: dict[int, dict[str, Any]] = {}
        for name, points in it.training.items():
            for step, value in points:
                steps.setdefault(step, {})[name] = value
        rows += [{"iteration": it.name, "step": before + step} | steps[step] for step in sorted(steps)]
        before += max(steps, default=0)
    return rows
