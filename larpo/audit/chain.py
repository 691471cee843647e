"""The chain behind a reported number: what of it the auditor's own code makes again, what only an execution does."""

from collections.abc import Collection

from larpo.audit.open import AuditedRun
from larpo.audit.results import Check
from larpo.graph import Meta, kinds
from larpo.workspace.dvc import kind_of
from larpo.workspace.dvc_lock import LockedNode

NAME = "the chain behind the numbers"
COMPUTED = ("prompts", "items", "sample", "score", "candidates", "lists", "reference", "generate", "evaluate", "report")
"""Kinds whose outputs `larpo.audit.science` computes again, with `best_of_n` and `retrieve`."""


def only_executed(run: AuditedRun) -> list[LockedNode]:
    """Nodes whose outputs nothing but an execution makes again: what enters from outside, trainings, vectors. What
    `inputs` recorded, the lineage compares with what lies there."""
    skipped = (*COMPUTED, "best_of_n", "retrieve", "inputs", *(["reward"] if run.params.reward.source is None else []))
    return [node for node in run.nodes if kind_of(node.name) not in skipped]


def meta_of(run: AuditedRun, node: str) -> Meta:
    """What the auditor's dvc.yaml says of a node's kind: the run's own could call anything the same. The run's, of a
    kind that the auditor's does not have; its code is then told to be another."""
    return kinds().get(kind_of(node)) or run.graph[node].meta


def whole_chain(run: AuditedRun, executed: Collection[str], why: str = "") -> Check:
    """Whether every kind of node from the source to a reported number was made again, by the auditor's code or by its
    own; of several trainings those that were drawn stand for the others."""
    needed = [node.name for node in only_executed(run)]
    kinds_done = {kind_of(name) for name in needed if name in executed}
    left = [name for name in needed if name not in executed]
    open_ = [name for name in left if kind_of(name) not in kinds_done]
    behind = [f"{', '.join(open_)} {'were' if len(open_) > 1 else 'was'} not executed again{why}"] if open_ else []
    count = len(needed) - len(left)
    detail = f"{count} of {len(needed)} nodes executed that nothing else makes again; all others computed again"
    if drawn := [name for name in left if name not in open_]:
        detail += f"; not drawn: {', '.join(drawn)} (--all)"
    return Check("again", NAME, "not checked" if open_ and not count else "holds", count, detail, behind=tuple(behind))
