"""The plan of a run: its nodes in the order of the graph, each with what it needs, and the checks across them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from larpo.config.params import Params
from larpo.graph import Stage, read_stages, select, unroll
from larpo.plan.assumptions import Assumptions
from larpo.plan.checks import all_checks
from larpo.plan.context import Context
from larpo.plan.formula import GIB, Estimate, number
from larpo.plan.kinds.evaluate import evaluate
from larpo.plan.kinds.generate import generate, sample
from larpo.plan.kinds.retrieve import embed, lists, retrieve
from larpo.plan.kinds.reward import reward
from larpo.plan.kinds.score import best_of_n, score
from larpo.plan.kinds.train import reference, sft, train
from larpo.plan.plans import NodePlan, Plan

KINDS: dict[str, Callable[..., NodePlan]] = {
    "policy": lambda context, stage: NodePlan(stage, context.params.policy.model),
    "sft": sft,
    "reward": reward,
    "sample": sample,
    "score": score,
    "lists": lists,
    "reference": reference,
    "train": train,
    "generate": generate,
    "evaluate": evaluate,
    "best_of_n": best_of_n,
    "embed": embed,
    "retrieve": retrieve,
}
"""Kind of node → its plan, from the run, the stage's name, and what the stage's command is given (an iteration, a
policy and a benchmark). Of another kind nothing is estimated."""


def build_plan(
    params: Params,
    assumptions: Assumptions | None = None,
    name: str = "params.yaml",
    stages: Iterable[Stage] | None = None,
) -> Plan:
    """The plan of the run that `params` describes.

    Parameters
    ----------
    name
        The file that lines name.
    stages
        The nodes that are made, others are neither planned nor checked; None: the whole graph of this project.

    Raises
    ------
    UserError
        `train.launch` names a file that is missing or that Accelerate would refuse. Everything else that is wrong is a
        failed check in the plan.
    """
    context = Context(params, assumptions or Assumptions(), name)
    if stages is None:
        stages = unroll(read_stages(), params.model_dump(mode="json")).values()
    nodes = [plan_node(context, stage) for stage in reading_order(list(stages), list(params.iterations))]
    used = {node.model for node in nodes}
    checks = {check.line: check for check in [*context.problems, *all_checks(context, nodes)]}
    architectures = tuple(arch for model, arch in context.architectures.items() if model in used)
    return Plan(tuple(nodes), tuple(checks.values()), architectures, context.a)


def plan_node(context: Context, stage: Stage) -> NodePlan:
    if stage.kind not in KINDS:
        return NodePlan(stage.name, notes=("no estimate",))
    node = KINDS[stage.kind](context, stage.name, *stage.command.split()[3:])
    if not context.a.process_gib or not node.memory:
        return node
    process = Estimate("B", f"{number(context.a.process_gib)} · {GIB:,} B [the process without a model]")
    return replace(node, memory=node.memory | {"process": process})


def reading_order(stages: list[Stage], iterations: list[str]) -> list[Stage]:
    """As declared, but the nodes of one iteration together, behind what they need of the others and before the rest."""
    keys: dict[str, set[str]] = {}
    for stage in stages:
        keys.setdefault(stage.kind, set()).add(stage.name.partition("@")[2])
    unrolled = [kind for kind in keys if keys[kind] <= set(iterations)]
    needed = select({stage.name: stage for stage in stages}, unrolled)
    order = {s: i for i, s in enumerate(sorted(iterations, key=int), start=1)}

    def place(stage: Stage) -> float:
        if stage.kind in unrolled:
            return order[stage.name.partition("@")[2]]
        return 0 if stage.name in needed else math.inf

    return sorted(stages, key=place)
