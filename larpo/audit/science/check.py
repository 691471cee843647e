"""The run's numbers computed again from its own tables, by the code of whoever audits.

Paths are relative to the run's folder, which must be the working folder: parameters may name data relative to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch

from larpo import tables
from larpo.audit.compare.rules import LOGP
from larpo.audit.lineage.code import untrusted
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, counted, judged, unchecked
from larpo.audit.science import sampling as asked
from larpo.audit.science.overlap import (
    last_texts,
    near_duplicates,
    normalised,
    shared_ids,
    shared_passages,
    shared_texts,
)
from larpo.audit.science.rebuilt import picked, report
from larpo.audit.science.recompute import EXACT, close, different_rows, rewards_again
from larpo.audit.science.scores import metrics, outputs_scored
from larpo.config.params import Params
from larpo.errors import UserError, one_line
from larpo.hashing import digest, seed_of
from larpo.lists.negatives import related
from larpo.lists.read import read_lists, response_lists
from larpo.lists.recipes import build_lists
from larpo.lists.training import read_training_lists
from larpo.models.load import load_model
from larpo.models.remote_code import EVERY, TOKENIZER
from larpo.objectives import ListBatch, Objective, build
from larpo.report.read import read_json, training_curves
from larpo.rewards import MODELS, parts
from larpo.sources.pairs import read_pairs
from larpo.sources.prompts import draw
from larpo.training.list_trainer import STEP0_TOLERANCE, TrainingList, first_batch_loss, without_dropout
from larpo.training.logps import response_logps
from larpo.training.packing import pack

PART = "science"
PROMPTS_SCORED = 16  # prompts per iteration whose responses a reward model scores again
LISTS_SCORED = 8  # lists per iteration whose log-probabilities are computed again
BEST_OF_N = "picks of best of N"  # asked only where a run has some
TEXTS = "texts are their tokens"


def check_science(run: AuditedRun, trusted: bool = False) -> Iterator[Check]:
    """Every check of this part; one that cannot read a table fails with that table's line. `trusted`: code that the
    run's checkpoints bring may run, where its parameters say so."""
    for name, check in CHECKS.items():
        if name == BEST_OF_N and not run.params.best_of_n:
            continue
        absent = [path for path in reads(run, name) if path in run.left_out and not (run.folder / path).exists()]
        if absent:
            yield unchecked(PART, name, f"{absent[0]} is not in the pack")
            continue
        if why := untrusted(run, reads(run, name), trusted, TOKENIZER if name == TEXTS else EVERY):
            yield unchecked(PART, name, why)
            continue
        try:
            yield check(run, name)
        except UserError as error:
            yield judged(PART, name, 1, "a table or a file cannot be read", [str(error)])
        except Exception as error:  # noqa: BLE001 - the run may have been written by anyone, and other checks go on
            found = f"{type(error).__name__}: {one_line(error)}"
            yield judged(PART, name, 1, "what the run holds does not fit together", [found])


def reads(run: AuditedRun, name: str) -> list[str]:
    """Folders of weights that a check loads: what a pack may leave out."""
    params = run.params
    if name in ("rewards", BEST_OF_N) and params.reward.source is not None:
        return ["data/reward"]
    if name == TEXTS:
        made = {*(i.previous for i in params.iterations.values()), *params.evaluate.policies}
        return [f"data/policy/{p}" for p in sorted(made)]
    if name == "reference log-probabilities":
        return [f"data/policy/{params.reference_policy(s)}" for s in params.iterations]
    return [f"data/policy/{i.previous}" for i in params.iterations.values()] if name == "losses at step 0" else []


def _table(kind: str, path: str) -> pd.DataFrame:
    # The memory before the first iteration is empty.
    return tables.read(kind, path, empty=kind == "candidates")


def _chosen(ids: pd.Series, wanted: int) -> list[str]:
    """At most `wanted` different ids, chosen by a hash."""
    return sorted(ids.unique(), key=lambda i: digest("audit", i))[:wanted]


@dataclass
class Trained:
    """Prompts by where they are, texts of the reward model's pairs, and what cannot be read here."""

    prompts: dict[str, pd.DataFrame]
    pairs: list[str]
    unread: list[str]

    def texts(self) -> list[str]:
        return [text for frame in self.prompts.values() for text in last_texts(frame)] + self.pairs


@lru_cache(maxsize=1)  # two checks ask, and drawing a fine-tuning's prompts may take long
def trained_on(run: AuditedRun) -> Trained:
    """Prompts of the iterations, of fine-tunings (drawn again) and of the reward model's pairs. Data that params name
    may lie on the machine that made the run only."""
    params = run.params
    prompts = {f"data/prompts/{s}.parquet": _table("prompts", f"data/prompts/{s}.parquet") for s in params.iterations}
    found = Trained(prompts, [], [])
    for name, sft in params.sft.items():
        try:
            drawn = draw(sft.data, sft.examples, seed_of(sft.seed, "sft", name), held_out=False)
        except UserError as error:
            found.unread.append(f"sft.{name}.data: {error}")
        else:
            found.prompts[f"sft.{name}.data"] = drawn
    if params.reward.train is not None:
        try:
            pairs, _ = read_pairs(params.reward.train.data, "reward.train.data")
        except UserError as error:
            found.unread.append(f"reward.train.data: {error}")
        else:
            kept = (p for p in pairs if not p.held_out(params.reward.train.held_out))
            found.pairs = [normalised(p.messages[-1]["content"]) for p in kept]
    return found


def _evaluation(params: Params) -> dict[str, pd.DataFrame]:
    return {f"data/items/{b}.parquet": _table("items", f"data/items/{b}.parquet") for b in params.benchmarks}


def prompts_apart(run: AuditedRun, name: str) -> Check:
    trained, evaluation = trained_on(run), _evaluation(run.params)
    failures = [
        f"{items}, row {s.evaluation_row}: {what} is also in {source}, row {s.training_row}"
        for items, asked in evaluation.items()
        for source, frame in trained.prompts.items()
        for what, shared in (("its prompt_id", shared_ids(frame, asked)), ("its text", shared_texts(frame, asked)))
        for s in shared
    ]
    learnt = set(trained.pairs)
    failures += [
        f"{items}, row {row}: its text is among the reward model's training pairs"
        for items, asked in evaluation.items()
        for row, text in enumerate(last_texts(asked))
        if text and text in learnt
    ]
    if trained.unread and not failures:
        return unchecked(PART, name, "; ".join(trained.unread))
    count = sum(map(len, evaluation.values()))
    detail = f"{count} evaluation prompts against {len(trained.texts())} training prompts"
    return judged(PART, name, count, f"{detail}, by id and by normalised text", failures)


def near_prompts(run: AuditedRun, name: str) -> Check:
    """Counted, never a failure: whether near is too near depends on the task."""
    training, told, count = trained_on(run).texts(), [], 0
    for items, frame in _evaluation(run.params).items():
        asked = last_texts(frame)
        near, passages = near_duplicates(training, asked), shared_passages(training, asked)
        count += len(asked)
        most = f", the nearest {near[0].evaluation[-60:]!r} ~ {near[0].training[-60:]!r}" if near else ""
        told.append(f"{Path(items).stem}: {len(near)} of {len(asked)} near{most}; {len(passages)} share 13 words")
    return counted(PART, name, count, f"MinHash, Jaccard of 5 characters ≥ 0.8: {'; '.join(told)}")


def rewards(run: AuditedRun, name: str) -> Check:
    score = run.params.score
    by_model = [part for part, _ in parts(score) if part in MODELS]
    failures, count = [], 0
    for s in run.params.iterations:
        path = f"data/score/{s}.parquet"
        recorded = _table("rewards", path)
        responses, prompts = (
            _table("responses", f"data/sample/{s}.parquet"),
            _table("prompts", f"data/prompts/{s}.parquet"),
        )
        if recorded["response_id"].tolist() != responses["response_id"].tolist():
            failures.append(f"{path}: its responses are not those of data/sample/{s}.parquet, in their order")
            continue
        rows = responses.index
        if by_model:
            rows = rows[responses["prompt_id"].isin(_chosen(responses["prompt_id"], PROMPTS_SCORED))]
        again = rewards_again(score, prompts, responses.loc[rows], run.checkpoint("data/reward"))
        again["reward_name"] = score.reward
        tolerance = LOGP if by_model else EXACT
        failures += different_rows(path, recorded.loc[rows], again, ["reward", "correct", "reward_name"], tolerance)
        count += len(rows)
    how = f"{score.reward}, {f'{PROMPTS_SCORED} prompts an iteration' if by_model else 'every response'}"
    return judged(PART, name, count, f"{how}, computed again from the texts", failures)


def candidates(run: AuditedRun, name: str) -> Check:
    """D ← merge of D_0..D_s (Algorithm 1, line 3)."""
    failures, count = [], 0
    for s, iteration in run.params.iterations.items():
        path = f"data/candidates/{s}.parquet"
        recorded = _table("candidates", path)
        new = _table("responses", f"data/sample/{s}.parquet").merge(
            _table("rewards", f"data/score/{s}.parquet"), on="response_id", how="inner", validate="one_to_one"
        )
        earlier = tables.read("candidates", f"data/candidates/{iteration.previous}.parquet", empty=True)
        again = pd.concat([earlier, new], ignore_index=True) if len(earlier) else new
        failures += different_rows(path, recorded, again, list(tables.SCHEMAS["candidates"].names))
        count += len(recorded)
    return judged(PART, name, count, "merged again from samples, rewards and the memory", failures)


def lists(run: AuditedRun, name: str) -> Check:
    params, failures, count = run.params, [], 0
    for s in params.iterations:
        path = f"data/lists/{s}.parquet"
        recorded, known = _table("lists", path), _table("candidates", f"data/candidates/{s}.parquet")
        window = params.memory_window(s)
        seed = seed_of(params.seed, "lists", window[0] if params.lists.memory == "first" else s)
        similar = None
        if params.lists.negatives == "related":
            similar = related(_table("prompts", f"data/prompts/{s}.parquet"), params.lists.related_model)
        inside = known[known["iteration"].isin([int(w) for w in window])]
        again = build_lists(inside, params.lists, seed, similar).lists
        failures += different_rows(path, recorded, again, list(tables.SCHEMAS["lists"].names))
        count += len(recorded)
    return judged(PART, name, count, f"{params.lists.recipe}, built again from the candidates", failures)


def reference(run: AuditedRun, name: str) -> Check:
    """log π_ref of a sample of lists, by the checkpoint that the run names."""
    failures, count, largest = [], 0, 0.0
    for s in run.params.iterations:
        path = f"data/reference/{s}.parquet"
        recorded = _table("reference", path)
        frame = read_lists(f"data/lists/{s}.parquet", f"data/candidates/{s}.parquet")
        if recorded["response_id"].tolist() != frame["response_id"].tolist():
            failures.append(f"{path}: its responses are not those of data/lists/{s}.parquet, in their order")
            continue
        some = frame[frame["prompt_id"].isin(_chosen(frame["prompt_id"], LISTS_SCORED))]
        checkpoint = run.checkpoint(f"data/policy/{run.params.reference_policy(s)}")
        model = load_model(checkpoint, run.params.policy.dtype).eval()
        with torch.inference_mode():
            logps, lengths = response_logps(model, pack(batch := response_lists(some)))
        values = [float(logps[b, j]) for b, entry in enumerate(batch) for j in range(len(entry.response_ids))]
        sizes = [int(lengths[b, j]) for b, entry in enumerate(batch) for j in range(len(entry.response_ids))]
        again = pd.DataFrame({"reference_logp": values, "n_tokens": sizes}, index=some.index)
        here = recorded.loc[some.index]
        failures += different_rows(path, here, again, ["reference_logp", "n_tokens"], LOGP)
        largest = max(largest, float((here["reference_logp"] - again["reference_logp"]).abs().max()))
        count += len(some)
    detail = f"{LISTS_SCORED} lists an iteration, computed again; largest difference {largest:.2g}"
    return judged(PART, name, count, f"{detail}, allowed {LOGP:g} · (1 + |log π|)", failures)


def at_reference(objective: Objective, entry: TrainingList) -> float:
    """The loss of one list whose policy is its reference; no model is asked."""
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
    params, failures, count, told = run.params, [], 0, []
    objective = build(params.train.objective, **params.train.objective_options)
    for s, iteration in params.iterations.items():
        if params.reference_policy(s) != iteration.previous:
            continue  # another reference
        trained = read_training_lists(*[f"data/{kind}/{s}.parquet" for kind in ("lists", "candidates", "reference")])
        model = without_dropout(load_model(run.checkpoint(f"data/policy/{iteration.previous}"), params.policy.dtype))
        first = trained[: params.train.lists_per_device_batch]
        loss, expected = first_batch_loss(model, first, objective)
        tolerance = STEP0_TOLERANCE[params.policy.dtype]
        if not close(expected, loss, tolerance):
            failures.append(f"train@{s}: loss before the first step {loss:.6f}, expected {expected:.6f}")
        notes = read_json(f"data/train/{s}.manifest.json").get("notes", {})
        for key, value in (("step0_loss", loss), ("step0_expected", expected)):
            if not close(value, float(notes.get(key, math.nan)), tolerance):
                failures.append(
                    f"data/train/{s}.manifest.json: notes.{key} is {notes.get(key)}, computed again {value:.6f}"
                )
        # The first step's lists are a random draw of all: their mean lies within the values of all.
        bounds = [at_reference(objective, entry) for entry in trained]
        logged = training_curves(f"data/train/{s}").get("loss", [])
        if not logged or logged[0][0] != 1:
            failures.append(f"data/train/{s}: no loss of step 1 among the curves")
        elif not min(bounds) - tolerance <= logged[0][1] <= max(bounds) + tolerance * (1 + max(bounds)):
            failures.append(
                f"data/train/{s}: loss of step 1 is {logged[0][1]:.6f}, expected from {min(bounds):.6f} to "
                f"{max(bounds):.6f}"
            )
        count += 1
        told.append(f"train@{s} {loss:.4f} (expected {expected:.4f})")
    if not count:
        return unchecked(PART, name, "the reference is not the policy that an iteration starts from")
    return judged(PART, name, count, "; ".join(told), failures)


CHECKS: dict[str, Callable[[AuditedRun, str], Check]] = {
    "no evaluation prompt in training": prompts_apart,
    "near-duplicates of evaluation prompts": near_prompts,
    "prompts": asked.prompts,
    "items": asked.items,
    "ids": asked.ids,
    "as many as asked for": asked.rows,
    TEXTS: asked.tokens,
    "rewards": rewards,
    "candidates": candidates,
    "lists": lists,
    "reference log-probabilities": reference,
    "losses at step 0": step0,
    "scores of raw outputs": outputs_scored,
    "metrics": metrics,
    BEST_OF_N: picked,
    "report": report,
}
