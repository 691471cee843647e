"""A reward model that the run trained on preference pairs, as far as no execution of its node is needed.

Its weights lie within AdamW's reach (larpo.audit.science.policies) of those that it started from, which are made again
by the node's own function: the body of the policy or checkpoint, and a new head of the seed. What lies beside them is
theirs. Its accuracy on the held-out pairs is measured again where the pairs are here.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification

from larpo.audit.compare.files import Unreadable
from larpo.audit.compare.rules import LOGP
from larpo.audit.compare.values import EXACT, different_values
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude, unchecked
from larpo.audit.science import policies
from larpo.audit.science.training import HALF
from larpo.config.reward import PairsParams, RewardParams
from larpo.errors import ParameterError, UserError
from larpo.hashing import seed_of
from larpo.models.load import open_tokenizer, open_weights
from larpo.models.remote_code import CLASSIFIER, EVERY, names_of, references, settle
from larpo.models.resolve import Checkpoint, of, resolve
from larpo.report.read import read_json
from larpo.rewards import accuracy
from larpo.rewards.checkpoint import IDENTITY, fetch_classifier, identity_of, reward_checkpoint, where
from larpo.rewards.encoding import Encoder
from larpo.sources.pairs import Pair, read_pairs
from larpo.statistics import wilson
from larpo.training.determinism import deterministic
from larpo.training.pair_trainer import encode_pairs

PART = "science"
FOLDER = Path("data/reward")
METRICS, MANIFEST, CURVES = FOLDER / "metrics.json", "data/reward.manifest.json", str(FOLDER / "training")
MAKERS = ("torch", "transformers", "tokenizers")
"""Packages whose versions decide what head a seed makes, and how a tokenizer and a configuration are written."""


def trained(run: AuditedRun, name: str) -> Check:
    """Weights, what lies beside them, and reward.json."""
    params = run.params.reward
    start = _start(run, params)
    if isinstance(start, str):
        return unchecked(PART, name, start)
    recorded = read_json(FOLDER / IDENTITY)
    here, claimed = start.facts.get("package"), recorded.get("package")
    if here and here != claimed:
        return unchecked(PART, name, f"{params.model}: it was trained from {claimed}, here is {here}")
    with tempfile.TemporaryDirectory(prefix="larpo-audit-") as scratch:
        before = Path(scratch)
        checkpoint = reward_checkpoint(params, start if params.policy else None)
        seed = seed_of(params.train.seed, "reward")
        with deterministic(seed, "reward.train", params.train.deterministic):  # as in the node, up to its training
            model, tokenizer, facts = fetch_classifier(params, checkpoint, "float32", new_head=True)
        Encoder(tokenizer, params.max_length)  # sets lengths of the tokenizer, which the node saves with it
        model.save_pretrained(before)
        tokenizer.save_pretrained(before)
        settle(before, checkpoint)
        del model
        own = IDENTITY, METRICS.name
        count, lines = policies.beside(before, FOLDER, params.source, lambda: tokenizer, own)
        other = _other_packages(run)
        failures, behind = ([], [f"{line}; {other}" for line in lines]) if other else (lines, [])
        again = identity_of(FOLDER, params, tokenizer, trained=recorded.get("trained"), **facts)
        again = {key: again.get(key) for key in recorded}  # an older run's has fewer
        failures += different_values(str(FOLDER / IDENTITY), recorded, again)
        told = read_json(MANIFEST).get("notes", {}).get("reward")
        failures += different_values(f"{MANIFEST}: notes", {"reward": told}, {"reward": recorded})
        most = "its optimizer is none of which the reach is known"
        if policies.unknown_reach(params.train):
            behind.append(most)
        else:
            far, unsure, most = _reach(run, before, checkpoint, dict(recorded.get("trained") or {}))
            failures, behind = failures + far, behind + unsure
    return conclude(PART, name, count, f"{count} files beside the weights of {params.source}; {most}", failures, behind)


def _start(run: AuditedRun, params: RewardParams) -> Checkpoint | str:
    """What it was trained from, or why that is not looked at."""
    if params.policy is not None:
        return run.checkpoint(params.start)
    try:
        checkpoint = resolve(params.model)
    except ParameterError as error:
        return str(error)
    if checkpoint.facts["origin"] == "hub":
        return f"{params.model} is not here, and nothing is fetched"
    if brought := references(checkpoint, EVERY):
        return f"{params.model} brings custom code ({names_of(brought)}), which is executed with its node alone"
    return checkpoint


def _reach(
    run: AuditedRun, before: Path, checkpoint: Checkpoint, told: dict[str, Any]
) -> tuple[list[str], list[str], str]:
    """(failures, what cannot be told, a detail) of the weights."""
    params, failures, behind, most = run.params.reward, [], [], 0.0
    pairs = told.get("train") or 0
    total = policies.steps(params.train, pairs, params.train.pairs_per_step)
    for where_, count in ((CURVES, policies.logged(CURVES)), (f"{FOLDER / IDENTITY}: trained", told.get("steps"))):
        if count != total:
            failures.append(f"{where_}: {count} steps, {pairs} pairs make {total}")
    other = _other_packages(run)
    try:
        for tensor, _, share, line in policies.strays(before, FOLDER, params.train, total, "float32"):
            most = max(most, share)
            if line and other and tensor in _new(params, checkpoint):
                behind.append(f"{line}; {other}")
            elif line:
                failures.append(line)
                break
    except Unreadable as error:
        failures.append(f"{FOLDER}: its weights are not those of {params.source} with a head: {error}")
    return failures, behind, f"at most {most:.0%} of the reach of {total} steps"


def _other_packages(run: AuditedRun) -> str | None:
    """Why a head, a tokenizer or a configuration may be another here. It is said once one is: a version is a claim."""
    here, there = {p: version(p) for p in MAKERS}, run.recorded("reward").packages
    differ = [f"{p} {there.get(p)}, here is {v}" for p, v in here.items() if there.get(p) != v]
    return f"its manifest claims {'; '.join(differ)}" if differ else None


def _new(params: RewardParams, checkpoint: Checkpoint) -> set[str]:
    """Names of the tensors that the checkpoint lacks."""
    name, auto = where(params), AutoModelForSequenceClassification
    return set(open_weights(auto, checkpoint, "float32", CLASSIFIER, name, num_labels=1)[1]["missing_keys"])


def held_out(run: AuditedRun, name: str) -> Check:
    """metrics.json: the accuracy on the held-out pairs and on those of `reward.checks`; and on how many it trained."""
    params, recorded = run.params.reward, read_json(METRICS)
    failures, unread, details, count = [], [], [], 0
    notes = read_json(MANIFEST).get("notes", {})
    failures += different_values(f"{MANIFEST}: notes", {key: notes.get(key) for key in recorded}, recorded)
    reward = run.checkpoint(str(FOLDER))
    if why := _elsewhere(params.train.data):
        unread.append(why)
    else:
        pairs, dropped = read_pairs(params.train.data, "reward.train.data")
        encoder = Encoder(open_tokenizer(of(reward), str(FOLDER)), params.max_length)
        kept, apart, too_long, cut = encode_pairs(encoder, pairs, params.train.held_out)
        counts = {"data": params.train.data.name, "train": len(kept), "held_out": len(apart), "prompts_cut": cut}
        told = dict(read_json(FOLDER / IDENTITY).get("trained") or {})
        failures += different_values(f"{FOLDER / IDENTITY}: trained", {k: told.get(k) for k in counts}, counts)
        dropped |= {"too_long": too_long} if too_long else {}
        failures += different_values(f"{METRICS}: dropped", recorded.get("dropped"), dropped)
        failures += _different(run, "held_out", recorded.get("held_out"), apart, {})
        details.append(f"{len(apart)} held-out pairs")
        count += len(apart)
    for check, data in params.checks.items():
        if why := _elsewhere(data):
            unread.append(why)
            continue
        pairs, dropped = accuracy.read_check(params, check)
        told = (recorded.get("checks") or {}).get(check)
        failures += _different(run, f"checks.{check}", told, pairs, {"dropped": dropped})
        details.append(f"{len(pairs)} pairs of {check}")
        count += len(pairs)
    detail = f"scored again: {', '.join(details) or 'none'}"
    return conclude(PART, name, count, detail, failures, list(dict.fromkeys(unread)))


def _elsewhere(pairs: PairsParams) -> str | None:
    """Why the pairs cannot be read here; None where they can."""
    if pairs.source == "dataset" and not Path(pairs.data or "").exists():
        return f"{pairs.data} is not here, and nothing is fetched"
    return None


def _different(run: AuditedRun, key: str, told: Any, pairs: list[Pair], more: dict[str, Any]) -> list[str]:
    """Lines on an accuracy of metrics.json. Pairs whose scores lie so close that another machine may rank them
    otherwise count as either."""
    params = run.params.reward
    if not pairs:
        raise UserError(f"{METRICS}: {key}: there is no such pair in the data")
    fitting, scores = accuracy.pair_scores(run.checkpoint(str(FOLDER)), params, pairs)
    tolerance = LOGP if params.dtype == "float32" else HALF
    margins, too_long = scores[:, 0] - scores[:, 1], len(pairs) - len(fitting)
    again = accuracy.accuracy(fitting, margins, too_long) | more
    close = np.abs(margins) <= tolerance * (2 + np.abs(scores).sum(axis=1))
    low, high = (
        accuracy.accuracy(fitting, np.where(close, side, margins), too_long)["accuracy"]["value"] for side in (-1, 1)
    )
    told = dict(told or {})
    value = (told.get("accuracy") or {}).get("value")
    if close.any() and isinstance(value, float) and low - EXACT <= value <= high + EXACT:
        bounds = wilson(round(value * len(fitting)), len(fitting))
        again["accuracy"] = dict(zip(("value", "low", "high"), (value, *bounds), strict=True))
        again["ties"] = told.get("ties") if close.sum() >= (told.get("ties") or 0) else again["ties"]
    means = [{"mean_margin": tree.pop("mean_margin", None)} for tree in (told, again)]
    place, loose = f"{METRICS}: {key}", tolerance * (1 + float(np.abs(scores).max()))
    return different_values(place, told, again) + different_values(place, *means, tolerance=loose)
