"""Every score computed again from the raw outputs, up to the metrics that the report shows."""

from __future__ import annotations

from larpo import tables
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, judged
from larpo.audit.science.recompute import different_rows, different_values
from larpo.benchmarks import build_benchmark
from larpo.report.read import read_json
from larpo.retrieval.scores import recall_at
from larpo.statistics import best_of_n_curve

PART = "science"
ASKED = [name for name in tables.SCHEMAS["outputs"].names if not name.endswith("token_ids")]


def outputs_scored(run: AuditedRun, name: str) -> Check:
    """Parsed answers and scores of every output; a judge's verdicts are taken as they were recorded."""
    failures, count, judged_by = [], 0, []
    for benchmark, policy in run.evaluated:
        bench, path = build_benchmark(run.params, benchmark), f"data/evaluate/{policy}-{benchmark}.parquet"
        recorded = tables.read("evaluations", path)
        outputs = tables.read("outputs", f"data/generate/{policy}-{benchmark}.parquet")
        failures += different_rows(path, recorded, outputs, ASKED)
        items = tables.read("items", f"data/items/{benchmark}.parquet")
        asked = recorded[["prompt_id"]].merge(items, on="prompt_id", how="left")
        failures += different_rows(path, recorded, asked, ["messages", "answer"])
        if getattr(bench, "judge", None) is not None:
            judged_by.append(benchmark)
            continue
        if len(recorded) == len(outputs):
            failures += different_rows(path, recorded, bench.score(items, outputs), ["parsed", "score"])
        count += len(outputs)
    detail = f"{count} raw outputs parsed and scored again"
    if judged_by:
        detail += f"; not of {', '.join(dict.fromkeys(judged_by))}, whose judge is not asked again"
    return judged(PART, name, count, detail, failures)


def metrics(run: AuditedRun, name: str) -> Check:
    """Accuracies, Pass@N, win rates with their intervals, from the tables of scored outputs."""
    failures, count = [], 0
    for benchmark, policy in run.evaluated:
        stem = f"data/evaluate/{policy}-{benchmark}"
        again = {
            "benchmark": benchmark,
            "policy": policy,
            **build_benchmark(run.params, benchmark).aggregate(
                tables.read("items", f"data/items/{benchmark}.parquet"), tables.read("evaluations", f"{stem}.parquet")
            ),
        }
        failures += different_values(f"{stem}.json", read_json(f"{stem}.json"), again)
        count += 1
    for key, wanted in run.params.best_of_n.items():
        stem = f"data/evaluate/best_of_n-{key}"
        points = best_of_n_curve(tables.read("scored", f"{stem}.parquet"), wanted.ns)
        failures += different_values(f"{stem}.json", read_json(f"{stem}.json")["points"], points, "points")
        count += 1
    for key, wanted in run.params.retrieval.items():
        stem = f"data/evaluate/retrieval-{key}"
        recorded = read_json(f"{stem}.json")
        again = recall_at(tables.read("retrievals", f"{stem}.parquet"), wanted.ns)
        failures += different_values(f"{stem}.json", {k: recorded.get(k) for k in again}, again)
        count += 1
    return judged(PART, name, count, f"{count} metrics files computed again from their tables", failures)
