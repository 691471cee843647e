"""Nodes `reference`, `train` and `sft`: the policy reads lists or examples, and learns from them."""

from dataclasses import replace
from typing import Any

from larpo.config.training import OPTIMIZERS
from larpo.plan.architectures import Architecture
from larpo.plan.context import Context
from larpo.plan.formula import Estimate, Unknown, number
from larpo.plan.launch import Launch, read_launch
from larpo.plan.memory import MicroBatch, Sharding, forward_memory, training_memory
from larpo.plan.plans import NodePlan
from larpo.plan.sizes import rows_of, unknown_size
from larpo.plan.time import forward_hours, training_hours


def reference(context: Context, stage: str, s: str) -> NodePlan:
    """One forward pass over the lists of iteration s."""
    p, window = context.params, context.window(s)
    m, (lists, text) = context.list_size(window), context.lists_count(window)
    launch = read_launch(p.reference.launch, context.file, "reference")
    whole = Sharding("none", launch.processes)
    base = NodePlan(stage, p.policy.model, launch.processes, str(whole))
    if context.policy is None:
        return base
    text = f"{text} = {lists:,} lists of {m}"
    if p.reference.mismatched:
        m, text = m + 1, f"{text} and a mismatched response"
    section, autocast = p.reference, p.reference.autocast == "bfloat16"
    batch = context.in_memory(m, section.lists_per_batch, section.tokens_per_batch)
    return replace(
        base,
        memory=forward_memory(
            context.policy, batch, dtype=p.policy.dtype, autocast=autocast, logits_at_once=context.a.logits_at_once
        ),
        hours=forward_hours(
            context.policy, lists * context.list_tokens(m), context.attended(m), p.training_dtype, context.a
        ),
        notes=(text,),
    )


def train(context: Context, stage: str, s: str) -> NodePlan:
    """Preference training on the lists of iteration s."""
    p, window = context.params.train, context.window(s)
    m, (lists, text) = context.list_size(window), context.lists_count(window)
    m += context.params.reference.mismatched  # it stands behind the list's own in the same forward pass
    examples = lists * p.epochs
    if p.max_steps > 0:
        examples = min(examples, p.max_steps * p.lists_per_step)
    length = f"({number(context.prompt)} + {m} · ({number(context.response)} − 1))"
    batch = context.in_memory(m, p.lists_per_device_batch, p.tokens_per_device_batch)
    at_once = p.lists_per_device_batch or batch.tokens / context.list_tokens(m)
    return optimisation(
        context,
        NodePlan(stage, context.params.policy.model),
        context.policy,
        p,
        context.launch,
        dtype=context.params.policy.dtype,
        tokens=Estimate("tokens", f"{examples:,} lists [{text} · {p.epochs} epochs] · {length}"),
        micro_batches=examples / at_once,
        batch=batch,
        attended=context.attended(m),
    )


def sft(context: Context, stage: str, name: str) -> NodePlan:
    """Fine-tuning: one prompt and one response per example, padded to at most max_length."""
    section = context.params.sft[name]
    count = section.examples or rows_of(section.data.dataset, context.a)
    each = min(context.a.sft_tokens, section.max_length)
    if count is None:
        tokens = examples = Unknown("tokens", unknown_size(str(section.data.dataset), f"sft.{name}.examples: null"))
    else:
        share = 1.0 if section.examples else 1 - section.data.held_out
        text = f"{int(count):,} examples" + (f" · {number(share)} [not held out]" if share < 1 else "")
        examples = at_most(
            f"{text} · {section.epochs} epochs", section.max_steps, section.examples_per_step, "examples"
        )
        tokens = Estimate("tokens", f"{examples.formula} · {number(each)} tokens")
    at_once, peak = section.examples_per_device_batch, section.tokens_per_device_batch
    rows = at_once or max(1, peak // section.max_length)  # at least; shorter examples are more rows with smaller masks
    peak = rows * section.max_length if peak is None else max(peak, section.max_length)
    return optimisation(
        context,
        NodePlan(stage, context.params.policy.model),
        context.policy,
        section,
        read_launch(section.launch, context.file, f"sft.{name}"),
        dtype=context.params.policy.dtype,
        tokens=tokens,
        micro_batches=(examples.value or 0) / (at_once or peak / each),
        batch=MicroBatch(peak, peak, rows=rows),
        attended=each / 2,
    )


def at_most(epochs: str, max_steps: int, per_step: int, unit: str) -> Estimate:
    """Examples seen: those of all epochs, as a formula, or of `max_steps` steps where they are fewer (0: no limit)."""
    seen = Estimate(unit, epochs)
    return Estimate(unit, f"{max_steps:,} steps · {per_step} {unit}") if 0 < max_steps * per_step < seen.value else seen


def optimisation(
    context: Context,
    base: NodePlan,
    arch: Architecture | None,
    section: Any,
    launch: Launch,
    *,
    dtype: str,
    tokens: Estimate,
    micro_batches: float,
    batch: MicroBatch,
    attended: float,
) -> NodePlan:
    """Training of all weights in micro-batches of at most `batch`; a mean token attends to `attended` others."""
    base = replace(base, gpus=launch.sharding.gpus, sharding=str(launch.sharding), train_tokens=tokens)
    if arch is None:
        return base
    autocast = section.autocast == "bfloat16" or launch.bfloat16
    memory = training_memory(
        arch,
        batch,
        dtype=dtype,
        autocast=autocast,
        checkpointing=section.gradient_checkpointing,
        optimizer=str(section.trainer_options.get("optim", OPTIMIZERS[section.optimizer])),
        sharding=launch.sharding,
        logits_at_once=context.a.logits_at_once,
    )
    if tokens.value is None:
        return replace(base, memory=memory, hours=replace(tokens, unit="GPU h"))
    hours = training_hours(
        arch,
        tokens.value,
        attended,
        dtype="bfloat16" if autocast else dtype,
        checkpointing=section.gradient_checkpointing,
        micro_batches=micro_batches,
        sharding=launch.sharding,
        a=context.a,
    )
    return replace(base, memory=memory, hours=hours)
