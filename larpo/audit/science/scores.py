"""Every score computed again from the raw outputs, up to the metrics that the report shows."""

from larpo import tables
from larpo.audit.compare.values import different_rows, different_values
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude
from larpo.audit.science.rewards import different_rewards
from larpo.audit.science.verdicts import verdicts_again
from larpo.benchmarks import build_benchmark
from larpo.report.read import read_json
from larpo.retrieval.scores import recall_at
from larpo.statistics import best_of_n_curve

PART = "science"
GIVEN = [name for name in tables.SCHEMAS["outputs"].names if not name.endswith("token_ids")]


def outputs_scored(run: AuditedRun, name: str) -> Check:
    """Parsed answers and scores of every output; a judge's verdicts from its recorded replies."""
    failures, count, behind = [], 0, []
    for benchmark, policy in run.evaluated:
        bench, path = build_benchmark(run.params, benchmark), f"data/evaluate/{policy}-{benchmark}.parquet"
        recorded = tables.read("evaluations", path)
        outputs = tables.read("outputs", f"data/generate/{policy}-{benchmark}.parquet")
        failures += different_rows(path, recorded, outputs, GIVEN)
        items = tables.read("items", f"data/items/{benchmark}.parquet")
        questions = recorded[["prompt_id"]].merge(items, on="prompt_id", how="left")
        failures += different_rows(path, recorded, questions, ["messages", "answer"])
        if len(recorded) != len(outputs):
            continue
        columns = ["parsed", "score"]
        if getattr(bench, "judge", None) is None:
            again = bench.score(items, outputs)
        else:
            again, why = verdicts_again(run, benchmark, items, outputs)
            if again is None:
                behind.append(f"the verdicts of {policy}-{benchmark}: {why}, and nobody is asked twice")
                continue
            columns.append("judgement")
        failures += different_rows(path, recorded, again, columns)
        count += len(outputs)
    return conclude(PART, name, count, f"{count} raw outputs parsed and scored again", failures, behind)


def metrics(run: AuditedRun, name: str) -> Check:
    """Accuracies, Pass@N, win rates with their intervals, from the tables of scored outputs."""
    again = {}
    for benchmark, policy in run.evaluated:
        stem = f"data/evaluate/{policy}-{benchmark}"
        items, scores = (
            tables.read("items", f"data/items/{benchmark}.parquet"),
            tables.read("evaluations", f"{stem}.parquet"),
        )
        made = build_benchmark(run.params, benchmark).aggregate(items, scores)
        again[stem] = {"benchmark": benchmark, "policy": policy, **made}
    partial = {}  # keys of JSON files that hold more
    for key, params in run.params.best_of_n.items():
        stem = f"data/evaluate/best_of_n-{key}"
        partial[stem] = {"points": best_of_n_curve(tables.read("scored", f"{stem}.parquet"), params.ns)}
    for key, params in run.params.retrieval.items():
        stem = f"data/evaluate/retrieval-{key}"
        partial[stem] = recall_at(tables.read("retrievals", f"{stem}.parquet"), params.ns)
    failures = []
    for stem, values in {**again, **partial}.items():
        recorded = read_json(f"{stem}.json")
        if stem in partial:
            recorded = {key: recorded.get(key) for key in values}
        failures += different_values(f"{stem}.json", recorded, values)
    count = len(again) + len(partial)
    return conclude(PART, name, count, f"{count} metrics files computed again from their tables", failures)


def picked(run: AuditedRun, name: str) -> Check:
    """Rows, scores and rewards of the samples that best of N picks among."""
    failures, count = [], 0
    for key, params in run.params.best_of_n.items():
        which, path = f"{params.policy}-{params.benchmark}", f"data/evaluate/best_of_n-{key}.parquet"
        recorded = tables.read("scored", path)
        outputs = tables.read("outputs", f"data/generate/{which}.parquet")
        scores = tables.read("evaluations", f"data/evaluate/{which}.parquet")[[*tables.OUTPUT_KEY, "score"]]
        samples = outputs[(outputs["sample"] >= 0) & (outputs["turn"] == 0)]
        samples = samples[samples["temperature"] == samples["temperature"].iloc[0]].reset_index(drop=True)
        again = samples.merge(scores, on=tables.OUTPUT_KEY, how="left")
        count += len(recorded)
        if lines := different_rows(path, recorded, again, ["prompt_id", "sample", "n_tokens", "score"]):
            failures += lines
            continue
        items = tables.read("items", f"data/items/{params.benchmark}.parquet")
        failures += different_rewards(run, path, recorded, samples, items, ["reward"])[0]
    return conclude(PART, name, count, "rows and scores against the benchmark's, rewards computed again", failures)
