"""The reproducibility card: the seven variables by which a paper is scored, answered from a run's own records.

The variables are those of Gundersen and Kjensmo (AAAI 2018) in the form used on LARPO's paper. An answer is `yes`,
`partly` or `no`, with the evidence and with what is missing.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from larpo.audit.record import UNREADABLE, Manifest, Source
from larpo.audit.results import Check
from larpo.graph import kinds
from larpo.workspace.dvc import kind_of


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
    manifests
        By node.
    sources
        By node at which they enter.
    params
        params.yaml with defaults.
    checks
        What the audit found.
    remote, licence, lock
        The repository's public address, its licence file, its lock file of packages; None where there is none.
    """

    manifests: Mapping[str, Manifest]
    sources: Mapping[str, Sequence[Source]]
    params: dict[str, Any]
    checks: Sequence[Check]
    remote: str | None = None
    licence: str | None = None
    lock: str | None = None

    def check(self, name: str) -> Check | None:
        return next((c for c in self.checks if c.name == name), None)

    def distinct(self, value: Callable[[Manifest], Any]) -> list[Any]:
        """What the manifests hold of something, each once; nothing of those that hold none."""
        values: list[Any] = []
        for manifest in self.manifests.values():
            if (one := value(manifest)) not in (None, "", {}) and one not in values:
                values.append(one)
        return values


def card(evidence: Evidence) -> list[Answer]:
    """The seven answers, in the order of the review form."""
    return [make(evidence) for make in (_pseudocode, _code, _datasets, _splits, _hardware, _software, _setup)]


def _answer(variable: str, evidence: list[str], missing: list[str]) -> Answer:
    word = "no" if not evidence else "partly" if missing else "yes"
    return Answer(variable, word, tuple(evidence), tuple(missing))


def _pseudocode(e: Evidence) -> Answer:
    """Lines of Algorithm 1 and the code that is each, as dvc.yaml says."""
    ran, missing = [], []
    executed = {kind_of(node) for node in e.manifests}
    for kind, meta in kinds().items():
        for line, place in meta.algorithm.items():
            module, _, name = place.partition(":")
            target: Any = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part)
            text = f"{line}: node {kind}, {target.__module__}.{name}"
            (ran if kind in executed else missing).append(text)
    return _answer("Pseudocode", ran, [f"not run: {line}" for line in missing])


def _code(e: Evidence) -> Answer:
    evidence = [f"commit {commit}" for commit in e.distinct(lambda m: m.git.commit)]
    evidence += [e.remote or "its history in the run's repository and in a pack of it (no public address)"]
    evidence += [f"licence: {e.licence}"] if e.licence else []
    evidence += [
        f"code that a checkpoint brought was executed, as {parameter} says: {name}, sha256 {digest}, in the checkpoint"
        for noted in e.distinct(lambda m: m.notes.remote_code)
        for parameter, files in noted.items()
        for name, digest in files.items()
    ]
    missing = [] if e.licence else ["no licence file in the repository"]
    return _answer("Open source code", list(dict.fromkeys(evidence)), missing + _failed(e, "code is committed"))


def _datasets(e: Evidence) -> Answer:
    evidence, missing = {}, {}  # in order, each once
    for node, sources in e.sources.items():
        for source in sources:
            if source.kind in ("generated", "code"):
                made = "made by the committed code" if source.kind == "generated" else "code of the run's own"
                evidence[f"{node}: {source.name}, {made}"] = None
                continue
            version = f" {source.version}" if source.version else ""
            evidence[f"{node}: {source.name}{version}, {source.licence or 'licence not stated'}"] = None
            if not source.licence:
                missing[f"{node}: the licence of {source.name} is not stated"] = None
    return _answer("Open datasets", list(evidence), [*missing, *_failed(e, "sources")])


def _splits(e: Evidence) -> Answer:
    prompts = e.params["prompts"]
    evidence = [
        f"training: {prompts['per_iteration']} prompts in each of {len(e.params['iterations'])} iterations; "
        f"{prompts['held_out']:g} of all prompts, chosen by a hash of the text, are never trained on"
    ]
    for name, entry in e.params["benchmarks"].items():
        rows = e.manifests.get(f"items@{name}", UNREADABLE).rows.get("out")
        evidence.append(
            f"evaluation: {name}, {rows} items" + (f", split {entry['split']}" if entry.get("data") else "")
        )
    apart = e.check("no evaluation prompt in training")
    evidence += [f"{apart.verdict}: {apart.detail}"] if apart else []
    missing = [] if apart and apart.verdict == "holds" else ["that no evaluation prompt was trained on"]
    return _answer("Dataset splits", evidence, missing)


def _hardware(e: Evidence) -> Answer:
    evidence = []
    for h in e.distinct(lambda m: m.hardware.machine and m.hardware):
        gpus = ", ".join(h.gpus) or "no GPU"
        evidence.append(f"{h.cpu or h.machine}, {h.cores} cores, {h.memory_bytes / 2**30:.0f} GiB, {gpus}")
    if evidence:
        node, most = max(e.manifests.items(), key=lambda pair: pair[1].peak_memory_bytes)
        evidence.append(f"{sum(m.seconds for m in e.manifests.values()):.0f} s in {len(e.manifests)} nodes")
        evidence.append(f"most memory: {node}, {most.peak_memory_bytes / 2**30:.1f} GiB")
    lacking = [node for node, m in e.manifests.items() if not m.hardware.machine]
    return _answer("Hardware specification", evidence, [f"{node}: its manifest has no hardware" for node in lacking])


def _software(e: Evidence) -> Answer:
    sets = e.distinct(lambda m: m.packages)
    evidence = [", ".join(f"{name} {version}" for name, version in packages.items()) for packages in sets]
    evidence += [f"system: {system}" for system in e.distinct(lambda m: m.hardware.system)]
    missing = [f"{node}: its manifest has no packages" for node, m in e.manifests.items() if not m.packages]
    if e.lock:
        evidence.append(f"every package with its exact version: {e.lock} in the commit")
    else:
        missing.append("no lock file of packages in the repository")
    if len(sets) > 1:
        evidence.append(f"nodes ran with {len(sets)} different sets of packages")
    return _answer("Software dependencies", evidence, missing)


def _setup(e: Evidence) -> Answer:
    train = e.params["train"]
    evidence = [
        "every parameter of every node, defaults included, in the manifests",
        f"seed {e.params['seed']}; {len(e.distinct(lambda m: m.seed))} different seeds derived from it, one a node",
        f"objective {train['objective']} {train['objective_options']}, learning rate {train['learning_rate']:g}, "
        f"{train['epochs']} epochs, {train['lists_per_step']} lists a step",
        f"{e.params['sample']['responses']} responses a prompt, temperatures "
        + ", ".join(f"{s}: {i['temperatures']}" for s, i in e.params["iterations"].items()),
    ]
    notes = {node: m.notes for node, m in e.manifests.items()}
    exact = [n.exactness for n in notes.values() if n.exactness is not None]
    drifts = [n.drift["largest"] for n in notes.values() if n.drift and "largest" in n.drift]
    changed = [f"{node} {n.weights_changed:.1%}" for node, n in notes.items() if n.weights_changed is not None]
    if exact:
        evidence.append(
            f"as the nodes recorded, log-probabilities of packed responses are within {max(exact):.1e} nats per token "
            "of one response at a time"
            + (f", the sampler's within {max(drifts):.1e} of the trainer's" if drifts else "")
        )
    evidence += [f"weights that training changed: {', '.join(changed)}"] if changed else []
    return _answer("Experiment setup", evidence, _failed(e, "manifests' parameters", "parameters"))


def _failed(e: Evidence, *names: str) -> list[str]:
    """What checks that bear on a variable found wrong."""
    checks = (e.check(name) for name in names)
    return [f"{c.name}: {c.failures[0]}" for c in checks if c and c.verdict == "fails"]
