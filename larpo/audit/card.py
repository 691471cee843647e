"""The reproducibility card: the seven variables by which a paper is scored, answered from a run's own records.

The variables are those of Gundersen and Kjensmo (AAAI 2018) in the form used on LARPO's paper. An answer is `yes`,
`partly` or `no`, with the evidence and with what is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from larpo.audit.results import Check

ALGORITHM: tuple[tuple[str, str, str], ...] = (
    ("π_θ0, the policy to start from", "policy", "larpo.models.initial:fetch_initial_policy"),
    ("M prompts x from D_X", "prompts", "larpo.sources.prompts:draw"),
    ("y_1 … y_k ~ π_β(·|x) at temperature t_s", "sample", "tasks.frame.generator:Generator.run"),
    ("r(x, y)", "score", "larpo.rewards:build_reward"),
    ("D ← merge of D_0 … D_s", "candidates", "tasks.candidates:main"),
    ("ordered lists Y_x", "lists", "larpo.lists.recipes:build_lists"),
    ("log π_β(y|x)", "reference", "larpo.training.logps:response_logps"),
    ("L_rank", "train", "larpo.objectives:build"),
    ("θ_s ← θ_s − lr · ∇ L_rank", "train", "larpo.training.list_trainer:ListTrainer"),
)
"""Line of Algorithm 1, node, the code that is it."""


@dataclass(frozen=True)
class Answer:
    """One variable of the card."""

    variable: str
    answer: str
    evidence: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"evidence": list(self.evidence), "missing": list(self.missing)}


@dataclass(frozen=True)
class Evidence:
    """What the answers are drawn from.

    Attributes
    ----------
    manifests, kinds
        By node: its manifest; what precedes `@`.
    sources
        By node at which they enter: records of larpo.sources.provenance.
    params
        params.yaml with defaults.
    checks
        What the audit found.
    remote, licence, lock
        The repository's public address, its licence file, its lock file of packages; None where there is none.
    """

    manifests: dict[str, dict[str, Any]]
    kinds: dict[str, str]
    sources: dict[str, list[dict[str, Any]]]
    params: dict[str, Any]
    checks: Sequence[Check]
    remote: str | None = None
    licence: str | None = None
    lock: str | None = None

    def check(self, name: str) -> Check | None:
        return next((c for c in self.checks if c.name == name), None)

    def distinct(self, *keys: str) -> list[Any]:
        """Different values of a manifest entry, over all nodes."""
        found: list[Any] = []
        for manifest in self.manifests.values():
            value: Any = manifest
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None and value not in found:
                found.append(value)
        return found


def card(evidence: Evidence) -> list[Answer]:
    """The seven answers, in the order of the review form."""
    return [make(evidence) for make in (_pseudocode, _code, _datasets, _splits, _hardware, _software, _setup)]


def _answer(variable: str, evidence: list[str], missing: list[str]) -> Answer:
    word = "no" if not evidence else "partly" if missing else "yes"
    return Answer(variable, word, tuple(evidence), tuple(missing))


def _pseudocode(e: Evidence) -> Answer:
    ran = set(e.kinds.values())
    told, missing = [], []
    for line, node, place in ALGORITHM:
        module, _, name = place.partition(":")
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        (told if node in ran else missing).append(f"{line}: node {node}, {target.__module__}.{name}")
    return _answer("Pseudocode", told, [f"not run: {line}" for line in missing])


def _code(e: Evidence) -> Answer:
    commits = e.distinct("git", "commit")
    told = [f"commit {c}" for c in commits]
    told += [e.remote] if e.remote else []
    told += [f"licence: {e.licence}"] if e.licence else []
    told += [
        f"code that a checkpoint brought was executed, as {parameter} says: {name}, sha256 {digest}, in the checkpoint"
        for noted in e.distinct("notes", "remote_code")
        for parameter, files in noted.items()
        for name, digest in files.items()
    ]
    told = list(dict.fromkeys(told))
    missing = [] if e.remote else ["no address from which the repository can be fetched; a pack carries it"]
    missing += [] if e.licence else ["no licence file in the repository"]
    return _answer("Open source code", told, missing + _failed(e, "code is committed"))


def _datasets(e: Evidence) -> Answer:
    told, missing = [], []
    for node, found in e.sources.items():
        for s in found:
            if s["kind"] == "generated":
                told.append(f"{node}: {s['name']}, made by the committed code")
                continue
            version = f" {s['version']}" if s["version"] else ""
            told.append(f"{node}: {s['name']}{version}, {s['licence'] or 'licence not stated'}")
            if not s["licence"]:
                missing.append(f"{node}: the licence of {s['name']} is not stated")
    return _answer("Open datasets", list(dict.fromkeys(told)), list(dict.fromkeys(missing)) + _failed(e, "sources"))


def _splits(e: Evidence) -> Answer:
    prompts, told = e.params["prompts"], []
    told.append(
        f"training: {prompts['per_iteration']} prompts in each of {len(e.params['iterations'])} iterations; "
        f"{prompts['held_out']:g} of all prompts, chosen by a hash of the text, are never trained on"
    )
    for name, entry in e.params["benchmarks"].items():
        rows = e.manifests.get(f"items@{name}", {}).get("rows", {}).get("out")
        told.append(f"evaluation: {name}, {rows} items" + (f", split {entry['split']}" if entry.get("data") else ""))
    apart = e.check("no evaluation prompt in training")
    told += [f"{apart.verdict}: {apart.detail}"] if apart else []
    missing = [] if apart and apart.verdict == "holds" else ["that no evaluation prompt was trained on"]
    return _answer("Dataset splits", told, missing)


def _hardware(e: Evidence) -> Answer:
    told = []
    for h in e.distinct("hardware"):
        gpus = ", ".join(h.get("gpus") or []) or "no GPU"
        memory = (h.get("memory_bytes") or 0) / 2**30
        told.append(f"{h.get('cpu') or h.get('machine')}, {h.get('cores')} cores, {memory:.0f} GiB, {gpus}")
    seconds = sum(m.get("seconds", 0) for m in e.manifests.values())
    most = max(e.manifests.items(), key=lambda m: m[1].get("peak_memory_bytes", 0), default=None)
    if told and most:
        told.append(f"{seconds:.0f} s in {len(e.manifests)} nodes")
        told.append(f"most memory: {most[0]}, {most[1].get('peak_memory_bytes', 0) / 2**30:.1f} GiB")
    return _answer("Hardware specification", told, _without(e, "hardware"))


def _software(e: Evidence) -> Answer:
    sets = e.distinct("packages")
    told = [", ".join(f"{name} {version}" for name, version in packages.items()) for packages in sets]
    told += [f"system: {s}" for s in e.distinct("hardware", "system")]
    missing = _without(e, "packages")
    if e.lock:
        told.append(f"every package with its exact version: {e.lock} in the commit")
    else:
        missing.append("no lock file of packages in the repository")
    if len(sets) > 1:
        told.append(f"nodes ran with {len(sets)} different sets of packages")
    return _answer("Software dependencies", told, missing)


def _setup(e: Evidence) -> Answer:
    train = e.params["train"]
    told = [
        "every parameter of every node, defaults included, in the manifests",
        f"seed {e.params['seed']}; {len(e.distinct('seed'))} different seeds derived from it, one a node",
        f"objective {train['objective']} {train['objective_options']}, learning rate {train['learning_rate']:g}, "
        f"{train['epochs']} epochs, {train['lists_per_step']} lists a step",
        f"{e.params['sample']['responses']} responses a prompt, temperatures "
        + ", ".join(f"{s}: {i['temperatures']}" for s, i in e.params["iterations"].items()),
    ]
    return _answer("Experiment setup", told, _failed(e, "manifests' parameters", "parameters"))


def _without(e: Evidence, key: str) -> list[str]:
    return [f"{node}: its manifest has no {key}" for node, m in e.manifests.items() if not m.get(key)]


def _failed(e: Evidence, *names: str) -> list[str]:
    """What checks that bear on a variable found wrong."""
    found = (e.check(name) for name in names)
    return [f"{c.name}: {c.failures[0]}" for c in found if c and c.verdict == "fails"]
