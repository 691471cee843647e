"""The report written again from the recorded tables, page and curves included, by the code of whoever audits."""

import tempfile
from pathlib import Path

from larpo.audit.chain import meta_of
from larpo.audit.compare.rules import compare
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude, unchecked
from larpo.hashing import dvc_hash, file_hashes, tree_hash
from larpo.report.write import OUTPUTS, PAGE, write_report

PART = "science"
PAGE_CODE = ("larpo/report", "larpo/statistics.py")


def report(run: AuditedRun, name: str) -> Check:
    if "report" not in run.lock:
        return unchecked(PART, name, "the run has no report")
    failures, behind, code = [], [], Path(__file__).resolve().parents[3]
    theirs = run.lock["report"].deps
    same_code = all(p in theirs and _hash(code / p) == theirs[p].md5 for p in PAGE_CODE)
    same_code &= (
        not run.defaults.gone and (code / "dvc.yaml").read_bytes() == Path("dvc.yaml").read_bytes()
    )  # which says how nodes are drawn
    with tempfile.TemporaryDirectory() as home:
        hashes = {s: tree_hash(f"data/lists/{s}.parquet") for s in run.params.iterations}
        (Path(home) / "report").mkdir()
        write_report(run.params, hashes, lambda output: Path(home) / output, run.defaults.settings)
        for path in (p for p in OUTPUTS if p in run.lock["report"].outs):  # an older run has fewer
            if path == PAGE and not same_code:
                behind = [f"{PAGE}: other code laid it out than the auditor's; made again, it is not theirs"]
                continue
            relation = compare(meta_of(run, "report").compare, Path(path), Path(home) / path)
            if not relation.same:
                failures.append(f"{path}: {relation.difference or relation.detail}")
    return conclude(PART, name, len(OUTPUTS), "written again from the tables and manifests", failures, behind)


def _hash(path: Path) -> str:
    hashes = file_hashes(path)
    return dvc_hash({name: md5 for name, md5 in hashes.items() if "__pycache__" not in name})
