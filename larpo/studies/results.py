"""From what runs measured to a study's results, and from results to verdicts on the paper's findings.

results = results_of(study, "cpu", records)    # values seed by seed, with intervals; plain JSON
results["findings"] = judge(study, results)    # what they say, by the rule that the study declares
"""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from larpo.errors import UserError
from larpo.statistics import Z95
from larpo.studies.rule import (
    Evidence,
    Procedure,
    against,
    holm,
    interval,
    of_items,
    of_seeds,
    p_value,
    standard_error,
    verdict,
)
from larpo.studies.spec import Claim, Crossing, Rule, ScaleName, Source, Study

Reading = dict[str, float]
"""`value`, and where the run's file gives a 95 % interval over items, `error`: its standard error"""


def read_value(folder: Path, source: Source, policy: str | None = None) -> Reading:
    """One measure of one finished run, the mean over the source's policies where it names some. Raises UserError
    where the file or the key is not there."""
    if source.policies:
        found = [read_value(folder, source.model_copy(update={"policies": []}), p) for p in source.policies]
        return {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    name = str(source.file).replace("{policy}", policy or "")
    try:
        tree: Any = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{folder / name}: not readable ({reason}); expected a run's metrics") from None
    around: Any = None
    for part in str(source.key).split("/"):
        around = tree
        if part == "*" and isinstance(tree, dict) and len(tree) == 1:
            tree = next(iter(tree.values()))
        elif isinstance(tree, list) and (entry := [one for one in tree if _is(one, part)]):
            tree = entry[0]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            raise UserError(f"{name}: no {part!r} on the way to {source.key!r}; expected a number there")
    if not _number(tree):
        raise UserError(f"{name}: {source.key}: expected a number, found {tree!r}")
    ends = [around.get(end) for end in ("low", "high")] if isinstance(around, dict) else []
    error = {"error": standard_error(*ends)} if ends and all(map(_number, ends)) else {}
    return {"value": float(tree)} | error


def _is(entry: Any, part: str) -> bool:
    """`n=8`: an entry of a list by a field of it."""
    field, _, value = part.partition("=")
    return isinstance(entry, dict) and str(entry.get(field)) == value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(folder: Path, sources: dict[str, Source], policy: str | None) -> dict[str, Reading]:
    """Every measure of one finished run."""
    found = {name: read_value(folder, source, policy) for name, source in sources.items() if source.file}
    values = {name: reading["value"] for name, reading in found.items()}
    derived = {name: {"value": crossing(s.crossing, values)} for name, s in sources.items() if s.crossing}
    return {name: (found | derived)[name] for name in sources}


def crossing(c: Crossing, values: dict[str, float]) -> float:
    """N at which the rising curve first lies above the falling one: an end of the range where it does from the start or
    never does."""
    ahead = [values[up] - values[down] for up, down in zip(c.rising, c.falling, strict=True)]
    for i, (before, after) in enumerate(itertools.pairwise(ahead)):
        if before > 0:
            break
        if after > 0:
            share = -before / (after - before)
            return float(c.ns[i] * (c.ns[i + 1] / c.ns[i]) ** share)
    return float(c.ns[0] if ahead[0] > 0 else c.ns[-1])


def results_of(
    study: Study, scale: ScaleName, records: Sequence[dict[str, Any]], procedure: str = "LOOKS"
) -> dict[str, Any]:
    """All that runs measured, cell by cell and seed by seed; what is in studies/results/ beside the verdicts.

    Parameters
    ----------
    records
        One per run: `cell`, `seed`, `values` (measure → Reading), `seconds`, `git` and `declared`, the declaration that
        stood when it was run. Every cell has the same seeds.
    procedure
        A name of `larpo.studies.rule.Procedure`.
    """
    sources, cells = study.sources(scale), study.cells_at(scale)
    seeds = sorted({r["seed"] for r in records})
    found = {(r["cell"], r["seed"]): r["values"] for r in records}
    if missing := [f"{cell}, seed {seed}" for cell in cells for seed in seeds if (cell, seed) not in found]:
        raise ValueError(f"{study.name}: {len(missing)} runs are missing, such as {missing[0]}")
    commits = {f"{r['git']['commit'][:10]}{' and changes' if r['git']['dirty'] else ''}" for r in records}
    return {
        "study": study.name,
        "scale": scale,
        "seeds": seeds,
        "procedure": procedure,
        "declaration": study.declaration(scale),
        "declared": sorted({r["declared"] for r in records}),
        "rule": study.scales[scale].rule.model_dump(),
        "measures": {m: {"label": s.label, "percent": s.percent} for m, s in sources.items()},
        "cells": {
            name: {"label": cell.label, "reported": cell.reported, "same_as": cell.same_as.get(scale)}
            | {"measures": {m: _measured([found[name, seed][m] for seed in seeds]) for m in sources}}
            for name, cell in cells.items()
        },
        "run_seconds": round(sum(r["seconds"] for r in records)),
        "commits": sorted(commits),
    }


def _measured(readings: list[Reading]) -> dict[str, Any]:
    """The values of a cell's seeds, their mean, and its 95 % interval: over seeds, over items with one seed."""
    values = [r["value"] for r in readings]
    errors = [r["error"] for r in readings if "error" in r]
    low, high = interval(of_seeds(values), Procedure.LOOKS, 0.05)
    if len(values) == 1 and errors:
        low, high = values[0] - Z95 * errors[0], values[0] + Z95 * errors[0]
    elif len(set(values)) == 1 and len(values) > 1:
        low = high = values[0]
    out: dict[str, Any] = {
        "value": float(np.mean(values)),
        "low": _finite(low),
        "high": _finite(high),
        "values": values,
    }
    return out | ({"errors": errors} if len(errors) == len(values) else {})


def judge(study: Study, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Finding → verdict and claims, by the rule that the study declares for the results' scale.

    A finding holds where all its claims do, each at the first look that decides it (an intersection of hypotheses,
    which needs no correction). It does not hold where at some look the evidence against a claim outlasts Holm's
    correction for the number of its claims. Secondary claims have no say, and are judged only where the finding holds.
    Runs that were made under another declaration decide nothing.
    """
    return {f: _finding(study, results, claims) for f, claims in study.claims_at(results["scale"]).items()}


def _finding(study: Study, results: dict[str, Any], claims: list[Claim]) -> dict[str, Any]:
    rule, by, n = study.scales[results["scale"]].rule, Procedure[results["procedure"]], len(results["seeds"])
    looks = [look for look in rule.looks if look <= n] if by == Procedure.LOOKS else [n]
    problem = None
    if results["declared"] != [study.declaration(results["scale"])]:
        looks, problem = [], "some runs were made under another declaration: seeds that none has seen are needed"
    elif not looks:
        problem = f"no look yet: {n} of {rule.looks[0]} seeds"
    primary = [claim for claim in claims if not claim.secondary]
    judged = {id(claim): _claim(study, results, claim) for claim in claims}
    outcome = "undecided"
    for look in looks:
        entries = []
        for claim in primary:
            entry = judged[id(claim)]
            if entry["holds"] is None and not entry["problem"]:
                entry |= _at(study, results, claim, look, entry["margin"])
            entries.append(entry)
        corrected = holm([e.get("against", 1.0) if e["holds"] is not True else 1.0 for e in entries])
        for entry, p in zip(entries, corrected, strict=True):
            if "against" in entry:
                entry["against_holm"] = p
        if entries and all(e["holds"] for e in entries):
            outcome = "holds"
        elif any(p <= rule.level for p in corrected):
            outcome = "does not hold"
        if outcome != "undecided":
            for claim in [c for c in claims if c.secondary and outcome == "holds"]:
                entry = judged[id(claim)]
                if not entry["problem"]:
                    entry |= _at(study, results, claim, look, entry["margin"])
            break
    return {
        "verdict": outcome,
        "problem": problem,
        "procedure": by.value,
        "level": rule.level,
        "claims": [judged[id(claim)] for claim in claims],
    }


def _claim(study: Study, results: dict[str, Any], claim: Claim) -> dict[str, Any]:
    """A claim before any look: its difference on all seeds, and the same on the paper's numbers."""
    sources, scale = study.sources(results["scale"]), study.scales[results["scale"]]
    terms = claim.weights(scale.rule.primary)
    entry: dict[str, Any] = {"says": claim.says, "expects": claim.expects, "secondary": claim.secondary}
    entry |= {
        "holds": None,
        "verdict": "undecided",
        "look": None,
        "problem": None,
        "paper": on_paper(study, claim, scale.rule),
    }
    entry |= {"percent": all(sources[m].percent for _, _, m in terms if m in sources)}
    if absent := [m for _, _, m in terms if m not in sources]:
        # A finding must not hold by the claims that happen to be measured at this scale.
        return entry | {"problem": f"not measured: {study.measures[absent[0]].label}", "difference": None}
    margins = {scale.rule.margin if sources[m].percent else sources[m].margin for _, _, m in terms}
    if len(margins) > 1 or None in margins:
        return entry | {"problem": "no margin is declared for its measure", "difference": None}
    evidence = _evidence(study, results, claim, len(results["seeds"]))
    level = 0.05 if Procedure[results["procedure"]] == Procedure.LOOKS else scale.rule.level
    low, high = interval(evidence, Procedure[results["procedure"]], level)
    entry |= {"margin": margins.pop(), "over": _over(study, results, claim)}
    return entry | {"difference": {"value": evidence.mean, "low": _finite(low), "high": _finite(high), "n": evidence.n}}


def _at(study: Study, results: dict[str, Any], claim: Claim, look: int, margin: float) -> dict[str, Any]:
    """What a claim's first `look` seeds say."""
    rule, by = study.scales[results["scale"]].rule, Procedure[results["procedure"]]
    evidence, not_worse = _evidence(study, results, claim, look), claim.expects == "not_worse"
    low, high = interval(evidence, by, rule.level)
    found = verdict(low, high, margin, not_worse)
    holds = {"better": True, "same": not_worse, "worse": False, "undecided": None}[found]
    return {
        "holds": holds,
        "verdict": found,
        "look": look,
        "difference": {"value": evidence.mean, "low": _finite(low), "high": _finite(high), "n": evidence.n},
        "p": p_value(evidence, -margin if not_worse else 0.0, by),
        "against": against(evidence, margin, not_worse, by),
    }


def _over(study: Study, results: dict[str, Any], claim: Claim) -> str:
    rule, sources = study.scales[results["scale"]].rule, study.sources(results["scale"])
    used = {sources[m].over or rule.over for _, _, m in claim.weights(rule.primary)}
    return used.pop() if len(used) == 1 else "seeds"


def _evidence(study: Study, results: dict[str, Any], claim: Claim, look: int) -> Evidence:
    """The claim's difference in each of the first `look` seeds: runs of one seed share prompts, draws and items, and
    what they share cancels. Over items the arms' errors add up, as if they were asked different ones: too wide, never
    too narrow."""
    terms = claim.weights(study.scales[results["scale"]].rule.primary)
    measured = [(w, results["cells"][cell]["measures"][measure]) for w, cell, measure in terms]
    values = np.sum([w * np.asarray(m["values"][:look]) for w, m in measured], axis=0) - claim.by
    if _over(study, results, claim) == "seeds":
        return of_seeds(values)
    errors = [w * np.asarray(m.get("errors", [math.inf] * look)[:look]) for w, m in measured]
    return of_items(values, np.sqrt(np.sum(np.square(errors), axis=0)))


def on_paper(study: Study, claim: Claim, rule: Rule) -> dict[str, Any] | None:
    """The claim on the paper's own numbers, in their unit (shares in percent): its difference, whether that agrees or
    contradicts, and whether it is clear of their standard error (arms taken as independent). None: not all printed."""
    terms = claim.weights(rule.primary)
    numbers = [(w, study.cells[cell].reported.get(m), study.measures[m].error) for w, cell, m in terms]
    if any(value is None for _, value, _ in numbers):
        return None
    difference = sum(w * value for w, value, _ in numbers) - 100 * claim.by
    error = math.sqrt(sum((w * (e or 0.0)) ** 2 for w, _, e in numbers)) if all(e for _, _, e in numbers) else None
    asked = -100 * rule.margin if claim.expects == "not_worse" else 0.0
    says = "agrees" if difference > asked else "contradicts"
    clear = error is None or abs(difference - asked) > Z95 * error
    return {"difference": difference, "error": error, "says": says, "clear": clear}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
