"""Node `reward`: a checkpoint fetched, or a head (and its body) trained on pairs; accuracies measured."""

from dataclasses import replace

from larpo.config.reward import PairsParams
from larpo.plan.architectures import BYTES
from larpo.plan.assumptions import Assumptions
from larpo.plan.context import Context
from larpo.plan.formula import Estimate, Unknown, gib, number
from larpo.plan.kinds.train import at_most, optimisation
from larpo.plan.launch import read_launch
from larpo.plan.memory import MicroBatch, forward_memory
from larpo.plan.plans import NodePlan
from larpo.plan.sizes import rows_of, unknown_size
from larpo.plan.time import forward_hours
from larpo.sources.careless_sums import sum_pairs


def reward(context: Context, stage: str) -> NodePlan:
    section, a = context.params.reward, context.a
    if section.source is None:
        return NodePlan(stage, notes=("no model: rules, on the CPU",))
    arch = context.architecture(section.source, "reward.model")
    if arch is None:
        return NodePlan(stage, section.source)
    weights = Estimate("B", f"{number(arch.parameters)} · {BYTES[section.dtype]} B")
    node = NodePlan(stage, section.source, notes=(f"weights {weights.formula} = {gib(weights.value)}",))
    each = min(a.sft_tokens, section.max_length)
    measured = [(f"reward.checks.{name}.data", pairs, 1.0) for name, pairs in section.checks.items()]
    if section.train is not None:
        measured.insert(0, ("reward.train.data", section.train.data, section.train.held_out))
        node = _trained(context, node, each)
    if not measured:
        return node
    # Both responses of every pair that accuracy is reported on are scored once.
    counts = [(unknown_size(pairs.name, key), _pairs(pairs, a), share) for key, pairs, share in measured]
    if unknown := [reason for reason, count, _ in counts if count is None]:
        return replace(node, gpus=node.gpus or 1, hours=Unknown("GPU h", "; ".join(unknown)))
    attended = each / (2 if arch.kind == "decoder" else 1)
    tokens = 2 * sum(count * share for _, count, share in counts) * each
    hours = forward_hours(arch, tokens, attended, section.dtype, a)
    if node.hours is not None:
        return replace(node, hours=Estimate("GPU h", f"{node.hours.formula} + {hours.formula} [accuracies]"))
    memory = forward_memory(arch, MicroBatch(section.batch_tokens), dtype=section.dtype)
    return replace(node, gpus=1, sharding="one GPU", memory=memory, hours=hours)


def _trained(context: Context, node: NodePlan, each: float) -> NodePlan:
    """In float32, whatever dtype it scores in; one logit per response needs no vocabulary."""
    section, t = context.params.reward, context.params.reward.train
    batch, pairs = t.pairs_per_device_batch, _pairs(t.data, context.a)
    if pairs is None:
        tokens = seen = Unknown("tokens", unknown_size(t.data.name, "reward.train.data"))
    else:
        epochs = f"{pairs:,} pairs · (1 − {number(t.held_out)}) · {t.epochs} epochs"
        seen = at_most(epochs, t.max_steps, t.pairs_per_step, "pairs")
        tokens = Estimate("tokens", f"{seen.formula} · 2 · {number(each)} tokens")
    return optimisation(
        context,
        node,
        context.architectures[section.source],
        t,
        read_launch(t.launch, context.file, "reward.train"),
        dtype="float32",
        tokens=tokens,
        micro_batches=(seen.value or 0) / batch,
        batch=MicroBatch(2 * batch * section.max_length, rows=2 * batch),
        attended=each,
    )


def _pairs(pairs: PairsParams, a: Assumptions) -> int | None:
    """How many there are; None where nobody knows."""
    if pairs.source == "sums":
        there = sum(1 for _ in sum_pairs(pairs.sums.digits, pairs.sums.errors))
        return min(pairs.examples or there, there)
    return pairs.examples or rows_of(str(pairs.data), a)
