"""What stands on scores built again: picks of best of N, and the report with its page."""

from __future__ import annotations

import tempfile
from pathlib import Path

from larpo import tables
from larpo.audit.compare.rules import LOGP, compare
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, judged, unchecked
from larpo.audit.science.overlap import sample_rows
from larpo.audit.science.recompute import EXACT, different_rows, rewards_again
from larpo.hashing import dvc_hash, file_hashes, tree_hash
from larpo.report.write import OUTPUTS, PAGE, write_report
from larpo.rewards import MODELS, parts

PART = "science"
ITEMS_SCORED = 16
PAGE_CODE = ("tasks/report.py", "larpo/report", "larpo/statistics.py")


def picked(run: AuditedRun, name: str) -> Check:
    """Rows, scores and rewards of the samples that best of N picks among."""
    params, failures, count = run.params, [], 0
    by_model = any(part in MODELS for part, _ in parts(params.score))
    for key, wanted in params.best_of_n.items():
        which, path = f"{wanted.policy}-{wanted.benchmark}", f"data/evaluate/best_of_n-{key}.parquet"
        recorded = tables.read("scored", path)
        outputs = tables.read("outputs", f"data/generate/{which}.parquet")
        scores = tables.read("evaluations", f"data/evaluate/{which}.parquet")[[*tables.OUTPUT_KEY, "score"]]
        samples = outputs[(outputs["sample"] >= 0) & (outputs["turn"] == 0)].reset_index(drop=True)
        samples = samples[samples["temperature"] == samples["temperature"].iloc[0]].reset_index(drop=True)
        again = samples.merge(scores, on=tables.OUTPUT_KEY, how="left")
        found = different_rows(path, recorded, again, ["prompt_id", "sample", "n_tokens", "score"])
        failures += found
        count += len(recorded)
        if found:
            continue
        ids = sorted(samples["prompt_id"].unique())
        some = [ids[i] for i in sample_rows(len(ids), ITEMS_SCORED if by_model else len(ids), params.seed)]
        rows = samples.index[samples["prompt_id"].isin(some)]
        items = tables.read("items", f"data/items/{wanted.benchmark}.parquet")
        rewards = rewards_again(params.score, items, samples.loc[rows], run.checkpoint("data/reward"))
        failures += different_rows(path, recorded.loc[rows], rewards, ["reward"], LOGP if by_model else EXACT)
    return judged(PART, name, count, "rows and scores against the benchmark's, rewards computed again", failures)


def report(run: AuditedRun, name: str) -> Check:
    """The report written again from the recorded tables, page and curves included, by the code of whoever audits."""
    if "report" not in run.lock:
        return unchecked(PART, name, "the run has no report")
    failures, told, code = [], "", Path(__file__).resolve().parents[3]
    theirs = run.lock["report"].deps
    same_code = all(p in theirs and _hash(code / p) == theirs[p].md5 for p in PAGE_CODE)
    same_code &= (code / "dvc.yaml").read_bytes() == Path("dvc.yaml").read_bytes()  # which says how nodes are drawn
    with tempfile.TemporaryDirectory() as home:
        hashes = {s: tree_hash(f"data/lists/{s}.parquet") for s in run.params.iterations}
        (Path(home) / "report").mkdir()
        write_report(run.params, hashes, lambda output: Path(home) / output)
        for path in OUTPUTS:
            if path == PAGE and not same_code:
                told = "; the page was laid out by another version of the code and is not compared"
                continue
            found = compare("report", Path(path), Path(home) / path)
            if not found.same:
                failures.append(f"{path}: {found.difference or found.detail}")
    return judged(PART, name, len(OUTPUTS), f"written again from the tables and manifests{told}", failures)


def _hash(path: Path) -> str:
    hashes = file_hashes(path)
    return dvc_hash({name: md5 for name, md5 in hashes.items() if "__pycache__" not in name})
