"""The studies of a project: results follow from the recorded runs, verdicts from the results, pages from both.

A study's results hold what each run measured, seed by seed. They are read again from the runs' own outputs, which DVC's
experiments name and its cache holds; intervals, verdicts, pages and docs/findings.md are made again by the functions
that made them. The runs themselves are audited one by one (`larpo audit NAME`).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from larpo.audit.compare.values import different_values
from larpo.audit.lineage.commits import Commit
from larpo.audit.page import record
from larpo.audit.results import Check, conclude
from larpo.errors import UserError, one_line
from larpo.hashing import file_hash
from larpo.studies import Study, expand, judge, load_study, results_of
from larpo.studies.findings import FINDINGS, write_findings
from larpo.studies.page import PAGES, RESULTS, page
from larpo.studies.results import read_run
from larpo.workspace.dvc import cache_folder
from larpo.workspace.dvc_lock import LOCK, read_lock
from larpo.workspace.git import experiments

PART = "studies"
Results = dict[str, dict[str, Any]]
"""File in studies/results/ → what it holds."""


def audit_studies(project: Path) -> dict[str, Any]:
    """The audit of `project`'s studies as a JSON tree; `larpo.audit.results.STATUS` has what its verdict means."""
    return record({"run": project.name}, list(check_studies(project)), [])


def check_studies(project: Path) -> Iterator[Check]:
    """Every result in studies/results/ whose study is there; those from before studies declared their rule have means
    and pages only."""
    found: Results = {}
    for path in sorted((project / RESULTS).glob("*.json")):
        results = json.loads(path.read_text("utf-8"))
        if (project / "studies" / f"{results['study']}.yaml").is_file():
            found[path.relative_to(project).as_posix()] = results
    studies = {name: load_study(project / "studies", name) for name in {r["study"] for r in found.values()}}
    former = [name for name, r in found.items() if "declaration" not in r]
    behind = [f"{len(former)} results of no declared rule, such as {former[0]}"] if former else []
    declared = {name: r for name, r in found.items() if name not in former}
    yield runs(project, declared, studies)
    yield means(found)
    again = [(name, r, studies[r["study"]]) for name, r in declared.items()]
    failures = [line for name, r, study in again for line in computed(name, r, study)]
    yield conclude(PART, "intervals", len(again), f"{len(again)} results, computed again", failures, behind)
    judged = [(f"{name}: findings", r["findings"], judge(study, r)) for name, r, study in again]
    failures = [line for three in judged for line in different_values(*three)]
    yield conclude(PART, "verdicts", len(again), "judged again by the studies' rules", failures, behind)
    yield pages(project, declared, studies)


def means(found: Results) -> Check:
    """Each measure's value is the mean over its seeds."""
    failures, count = [], 0
    for name, results in found.items():
        for cell, facts in results["cells"].items():
            for measure, entry in facts["measures"].items():
                count += 1
                mean = {"value": float(np.mean(entry["values"]))}
                failures += different_values(f"{name}: {cell}, {measure}", {"value": entry["value"]}, mean)
    return conclude(PART, "means", count, f"{count} means over seeds, in {len(found)} results", failures)


def readings(results: dict[str, Any], cell: str, place: int) -> dict[str, dict[str, float]]:
    """What the results say that one run measured."""
    return {
        name: {"value": entry["values"][place]} | ({"error": entry["errors"][place]} if "errors" in entry else {})
        for name, entry in results["cells"][cell]["measures"].items()
    }


def computed(name: str, results: dict[str, Any], study: Study) -> list[str]:
    """Lines on what does not follow from the seeds' values."""
    records = [
        {"cell": cell, "seed": seed, "values": readings(results, cell, i), "seconds": 0, "declared": ""}
        | {"git": {"commit": "", "dirty": False}}
        for cell in results["cells"]
        for i, seed in enumerate(results["seeds"])
    ]
    again = results_of(study, results["scale"], records, results["procedure"])
    keys = ("seeds", "declaration", "rule", "measures", "cells")
    return different_values(name, {k: results[k] for k in keys}, json.loads(json.dumps({k: again[k] for k in keys})))


def runs(project: Path, declared: Results, studies: dict[str, Study]) -> Check:
    """What the results say that runs measured, against the runs."""
    known, failures, count, absent = experiments(project), [], 0, []
    for name, results in declared.items():
        study = studies[results["study"]]
        sources, seeds = study.sources(results["scale"]), results["seeds"]
        for run in expand(study, project / "studies", results["scale"], len(seeds)):
            if run.name not in known or run.seed not in seeds:
                absent.append(f"{run.name}: no experiment of that name")
                continue
            with tempfile.TemporaryDirectory() as home:
                try:
                    outputs(project, known[run.name], Path(home))
                    measured = read_run(Path(home), sources, run.policy)
                except UserError as error:
                    absent.append(f"{run.name}: {one_line(error)}")
                    continue
            count += 1
            said = readings(results, run.cell, seeds.index(run.seed))
            errors = all("error" in reading for reading in said.values())
            kept = measured if errors else {m: {"value": r["value"]} for m, r in measured.items()}
            said = said if errors else {m: {"value": r["value"]} for m, r in said.items()}
            failures += different_values(f"{name}: {run.cell}, seed {run.seed}", said, kept, "the run has")
    behind = [f"{len(absent)} runs are not here, such as {absent[0]}"] if absent else []
    return conclude(PART, "recorded runs", count, f"{count} runs' metrics read again", failures, behind)


def outputs(project: Path, commit: str, home: Path) -> None:
    """Metrics of the run at `commit` from DVC's cache, each with the hash of its dvc.lock, under `home`."""
    (home / LOCK).write_bytes(Commit(project, commit).content(LOCK) or b"")
    for node in read_lock(home / LOCK).values():
        for path, entry in node.outs.items():
            kept = cache_folder(project) / "files/md5" / entry.md5[:2] / entry.md5[2:]
            if path.endswith(".json") and "manifest" not in path and kept.is_file() and file_hash(kept) == entry.md5:
                (home / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(kept, home / path)


def pages(project: Path, declared: Results, studies: dict[str, Study]) -> Check:
    """docs/findings.md, and the page of each study where it lies here, by their bytes."""
    failures, count = [], 0
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "studies").symlink_to((project / "studies").resolve())
        made = {FINDINGS: write_findings(Path(home)).read_text("utf-8")}
    for name, results in declared.items():
        made[PAGES / f"{Path(name).stem}.html"] = page(studies[results["study"]], results)
    for path, text in made.items():
        if (project / path).is_file():
            count += 1
            recorded = (project / path).read_text("utf-8").splitlines()
            again = text.splitlines()
            if recorded != again:
                row = next((i for i, (a, b) in enumerate(zip(recorded, again, strict=False)) if a != b), len(again))
                failures.append(f"{path}, line {row + 1}: {[*recorded, ''][min(row, len(recorded))].strip()[:120]!r}")
    return conclude(PART, "pages", count, f"{count} pages made again from the results", failures)
