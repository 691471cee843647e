"""What an iteration trained on, made again: memory and lists; log π_ref and the loss before the first step, by the
checkpoints that the run names."""

import math
from dataclasses import asdict

import pandas as pd
import torch

from larpo import tables
from larpo.audit.compare.rules import LOGP
from larpo.audit.compare.values import close, different_rows, different_values
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude, unchecked
from larpo.audit.science.rewards import AT_ONCE, drawn
from larpo.hashing import seed_of
from larpo.lists.negatives import related
from larpo.lists.pool import read_pool
from larpo.lists.read import read_lists, response_lists
from larpo.lists.recipes import build_lists
from larpo.lists.training import read_training_lists
from larpo.models.load import load_model
from larpo.objectives import ListBatch, Objective, build
from larpo.report.read import read_json, training_curves
from larpo.training import drift
from larpo.training.list_trainer import STEP0_TOLERANCE, TrainingList, first_batch_loss, without_noise
from larpo.training.logps import response_logps
from larpo.training.packing import pack

PART = "science"
HALF = 2e-2  # of log-probabilities that were computed in bfloat16, another machine's kernels included


def candidates(run: AuditedRun, name: str) -> Check:
    """D ← merge of D_0..D_s (Algorithm 1, line 3)."""
    failures, count = [], 0
    for s, iteration in run.params.iterations.items():
        path = f"data/candidates/{s}.parquet"
        recorded = tables.read("candidates", path, empty=True)
        new = tables.read("responses", f"data/sample/{s}.parquet").merge(
            tables.read("rewards", f"data/score/{s}.parquet"), on="response_id", how="inner", validate="one_to_one"
        )
        # The memory before the first iteration is empty.
        earlier = tables.read("candidates", f"data/candidates/{iteration.previous}.parquet", empty=True)
        again = pd.concat([earlier, new], ignore_index=True) if len(earlier) else new
        failures += different_rows(path, recorded, again, tables.SCHEMAS["candidates"].names)
        count += len(recorded)
    return conclude(PART, name, count, "merged again from samples, rewards and the memory", failures)


def lists(run: AuditedRun, name: str) -> Check:
    params, failures, count = run.params, [], 0
    for s in params.iterations:
        path = f"data/lists/{s}.parquet"
        recorded = tables.read("lists", path)
        window = params.memory_window(s)
        seed = seed_of(params.seed, "lists", window[0] if params.lists.memory == "first" else s)
        similar = None
        if params.lists.negatives == "related":
            similar = related(tables.read("prompts", f"data/prompts/{s}.parquet"), params.lists.related_model)
        inside = read_pool(f"data/candidates/{s}.parquet", empty=True).of([int(w) for w in window])
        again = build_lists(inside, params.lists, seed, similar).lists
        failures += different_rows(path, recorded, again, tables.SCHEMAS["lists"].names)
        count += len(recorded)
    return conclude(PART, name, count, f"{params.lists.recipe}, built again from the candidates", failures)


def reference(run: AuditedRun, name: str) -> Check:
    """log π_ref of a sample of lists, and the sampler's drift from all of them."""
    failures, count, largest = [], 0, 0.0
    half = run.params.reference.autocast == "bfloat16"
    allowed = HALF if half else LOGP
    for s in run.params.iterations:
        path = f"data/reference/{s}.parquet"
        recorded = tables.read("reference", path)
        frame = read_lists(f"data/lists/{s}.parquet", f"data/candidates/{s}.parquet")
        if recorded["response_id"].tolist() != frame["response_id"].tolist():
            failures.append(f"{path}: its responses are not those of data/lists/{s}.parquet, in their order")
            continue
        some = frame[frame["prompt_id"].isin(drawn(run, path, frame["prompt_id"]))]
        checkpoint = run.checkpoint(f"data/policy/{run.params.reference_policy(s)}")
        model = load_model(checkpoint, run.params.policy.dtype).eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            logps, lengths = response_logps(model, pack(batch := response_lists(some)))
        values = [float(logps[b, j]) for b, entry in enumerate(batch) for j in range(len(entry.response_ids))]
        sizes = [int(lengths[b, j]) for b, entry in enumerate(batch) for j in range(len(entry.response_ids))]
        again = pd.DataFrame({"reference_logp": values, "n_tokens": sizes}, index=some.index)
        here = recorded.loc[some.index]
        failures += different_rows(path, here, again, ["reference_logp", "n_tokens"], allowed)
        largest = max(largest, float((here["reference_logp"] - again["reference_logp"]).abs().max()))
        apart = drift.from_sampler(run.params, s, frame.assign(**recorded[["reference_logp", "n_tokens"]]))
        if isinstance(apart, drift.Drift):
            manifest = f"data/reference/{s}.manifest.json"
            told = read_json(manifest).get("notes", {}).get("drift") or {}
            failures += different_values(f"{manifest}: notes", {"drift": told}, {"drift": asdict(apart)})
            failures += [] if apart.bounded else [f"{path}: drift from the sampler: {apart}"]
        count += len(some)
    detail = f"{run.draw.rows // AT_ONCE} lists an iteration, by lot; largest difference {largest:.2g}"
    return conclude(PART, name, count, f"{detail}, allowed {allowed:g} · (1 + |log π|)", failures)


def at_reference(objective: Objective, entry: TrainingList) -> float:
    """The loss of one list whose policy is its reference; no model is needed."""
    logps = torch.tensor([entry.reference_logps])
    batch = ListBatch(
        policy_logps=logps,
        reference_logps=logps,
        lengths=torch.tensor([[len(ids) for ids in entry.tokens.response_ids]]),
        rewards=torch.tensor([entry.rewards]),
        mask=torch.ones_like(logps, dtype=torch.bool),
        mismatched=None if entry.mismatched is None else torch.zeros(1),
    )
    return float(objective.at_reference(batch).mean())


def step0(run: AuditedRun, name: str) -> Check:
    """Policy and reference agree before the first step, so the loss needs no model (Appendix F)."""
    params, failures, details = run.params, [], []
    objective = build(params.train.objective, **params.train.objective_options)
    tolerance, half = STEP0_TOLERANCE[params.training_dtype], params.reference.autocast == "bfloat16"
    for s, iteration in params.iterations.items():
        if params.reference_policy(s) != iteration.previous:
            continue  # another reference
        trained = read_training_lists(*[f"data/{kind}/{s}.parquet" for kind in ("lists", "candidates", "reference")])
        model = without_noise(load_model(run.checkpoint(f"data/policy/{iteration.previous}"), params.policy.dtype))
        loss, expected = first_batch_loss(model, trained[: params.train.checked_lists], objective, half)
        details.append(f"train@{s} {loss:.4f} (expected {expected:.4f})")
        if not close(expected, loss, tolerance):
            failures.append(f"train@{s}: loss before the first step {loss:.6f}, expected {expected:.6f}")
        manifest = f"data/train/{s}.manifest.json"
        notes = read_json(manifest).get("notes", {})
        for key, value in (("step0_loss", loss), ("step0_expected", expected)):
            if not close(value, float(notes.get(key, math.nan)), tolerance):
                failures.append(f"{manifest}: notes.{key} is {notes.get(key)}, computed again {value:.6f}")
        # The first step's lists are a random draw of all: their mean lies within the values of all.
        bounds = [at_reference(objective, entry) for entry in trained]
        low, high = min(bounds), max(bounds)
        logged = training_curves(f"data/train/{s}").get("loss", [])
        if not logged or logged[0][0] != 1:
            failures.append(f"data/train/{s}: no loss of step 1 among the curves")
        elif not low - tolerance <= logged[0][1] <= high + tolerance * (1 + high):
            line = f"loss of step 1 is {logged[0][1]:.6f}, expected from {low:.6f} to {high:.6f}"
            failures.append(f"data/train/{s}: {line}")
    if not details:
        return unchecked(PART, name, "the reference is not the policy that an iteration starts from", False)
    return conclude(PART, name, len(details), "; ".join(details), failures)
