"""Nodes `reference`, `train` and `sft`: the policy reads lists or examples, and learns from them."""

from dataclasses import replace
from typing import Any

from larpo.plan.architectures import Architecture
from larpo.plan.context import Context
from larpo.plan.formula import Estimate, Unknown, number
from larpo.plan.launch import Launch, read_launch
from larpo.plan.memory import forward_memory, training_memory
from larpo.plan.plans import NodePlan
from larpo.plan.sizes import rows_of, unknown_size
from larpo.plan.time import forward_hours, training_hours


def reference(context: Context, stage: str, s: str) -> NodePlan:
    """One forward pass over the lists of iteration s."""
    p, window = context.params, context.window(s)
    m, (lists, text) = context.list_size(window), context.lists_count(window)
    base = NodePlan(stage, p.policy.model, 1, "one GPU")
    if context.policy is None:
        return base
    text = f"{text} = {lists:,} lists of {m}"
    if p.reference.mismatched:
        m, text = m + 1, f"{text} and a mismatched response"
    batch, dtype = p.reference.lists_per_batch, p.policy.dtype
    predicted = batch * m * p.sample.max_new_tokens
    tokens, attended = (context.packed(n, context.prompt, m, context.response) for n in (lists, batch))
    return replace(
        base,
        memory=forward_memory(context.policy, tokens=context.longest(batch, m), predicted=predicted, dtype=dtype),
        hours=forward_hours(context.policy, tokens, attended, dtype, context.a),
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
    batch = p.lists_per_device_batch
    return optimisation(
        context,
        NodePlan(stage, context.params.policy.model),
        context.policy,
        p,
        context.launch,
        dtype=context.params.policy.dtype,
        tokens=Estimate("tokens", f"{examples:,} lists [{text} · {p.epochs} epochs] · {length}"),
        micro_batches=examples / batch,
        peak=context.longest(batch, m),
        predicted=batch * m * context.params.sample.max_new_tokens,
        attended=context.packed(batch, context.prompt, m, context.response),
    )


def sft(context: Context, stage: str, name: str) -> NodePlan:
    """Fine-tuning: one prompt and one response per example, padded to at most max_length."""
    section, batch = context.params.sft[name], context.params.sft[name].examples_per_device_batch
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
    return optimisation(
        context,
        NodePlan(stage, context.params.policy.model),
        context.policy,
        section,
        read_launch(section.launch, context.file, f"sft.{name}"),
        dtype=context.params.policy.dtype,
        tokens=tokens,
        micro_batches=(examples.value or 0) / batch,
        peak=batch * section.max_length,
        predicted=batch * section.max_length,
        attended=each,
        rows=batch,
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
    peak: int,
    predicted: int,
    attended: float,
    rows: int = 1,
) -> NodePlan:
    """Training of all weights: micro-batches of at most `peak` tokens, `predicted` of them through the vocabulary, in
    `rows` padded rows; a mean token attends to `attended` others."""
    base = replace(base, gpus=launch.sharding.gpus, sharding=str(launch.sharding), train_tokens=tokens)
    if arch is None:
        return base
    autocast = section.autocast == "bfloat16" or launch.bfloat16
    memory = training_memory(
        arch,
        tokens=peak,
        predicted=predicted,
        dtype=dtype,
        autocast=autocast,
        checkpointing=section.gradient_checkpointing,
        optimizer=str(section.trainer_options.get("optim", "adamw_torch")),
        sharding=launch.sharding,
        rows=rows,
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
