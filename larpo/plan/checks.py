"""What must fit together before hours are spent: one line each, with what was expected and found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from larpo.lists import responses_needed
from larpo.params import nearest
from larpo.plan.architectures import Architecture
from larpo.plan.estimates import Sharding, gib, total, training_memory

if TYPE_CHECKING:
    from larpo.plan.nodes import Check, NodePlan, Planner

CONFIG_8 = "configs/fsdp-8x80gb.yaml"
CONFIG_1 = "configs/fsdp-1x80gb-offload.yaml"


def all_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    """Checks across sections, and each node's memory against the GPU."""
    return [
        *context_checks(planner),
        *list_checks(planner),
        *engine_checks(planner, nodes),
        *training_checks(planner, nodes),
        *judge_checks(planner),
        *memory_checks(planner, nodes),
    ]


def _check(ok: bool | None, line: str) -> Check:
    from larpo.plan.nodes import Check

    return Check(ok, line)


def context_checks(planner: Planner) -> list[Check]:
    """Prompt and response fit into what the policy and the reward model read."""
    p, a, out = planner.params, planner.a, []
    wanted = {"sample.max_new_tokens": (a.longest_prompt_tokens, p.sample.max_new_tokens)}
    for name, b in p.benchmarks.items():
        wanted[f"benchmarks.{name}.generate.max_new_tokens"] = (a.longest_prompt_tokens, b.generate.max_new_tokens)
    limit = p.engine.options.get("max_model_len")
    for key, (prompt, new) in wanted.items():
        for known, where in (
            (planner.policy.max_context if planner.policy else None, p.policy.model),
            (limit if p.engine.name == "vllm" else None, "engine.options.max_model_len"),
        ):
            if known is not None:
                fits = prompt + new <= known
                out.append(_check(fits, f"{key}: {prompt:,} + {new:,} tokens of {known:,} ({where})"))
    section = getattr(p, "reward", None)
    model = getattr(section, "model", None) or p.score.options.get("model")
    reward = planner.architectures.get(model)
    if reward is not None:
        one = a.prompt_tokens + planner.response
        need = a.longest_prompt_tokens + p.sample.max_new_tokens * (2 if reward.kind == "encoder" else 1)
        if one > reward.max_context:
            out.append(_check(False, f"reward.model: {model} reads {reward.max_context:,} tokens, the mean is {one:g}"))
        else:
            out.append(
                _check(
                    True if need <= reward.max_context else None,
                    f"reward.model: {model} reads {reward.max_context:,} tokens, the longest is {need:,}"
                    + ("" if need <= reward.max_context else ": longer ones are cut"),
                )
            )
    return out


def list_checks(planner: Planner) -> list[Check]:
    p = planner.params
    needed, k = responses_needed(p.lists), p.sample.responses
    return [_check(needed <= k, f"lists.recipe: {p.lists.recipe} needs {needed} responses, sample.responses is {k}")]


def engine_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    p, a, out = planner.params, planner.a, []
    if p.engine.name != "vllm":
        return out
    tp = planner.tensor_parallel
    out.append(_check(tp <= a.gpus, f"engine.options.tensor_parallel_size: {tp} of {a.gpus} GPU(s)"))
    if planner.policy is not None:
        heads = planner.policy.heads
        out.append(_check(heads % tp == 0, f"engine.options.tensor_parallel_size: {tp} divides {heads} heads"))
    if int(p.engine.options.get("data_parallel_size", 1)) > 1:
        out.append(
            _check(False, "engine.options.data_parallel_size: vLLM refuses it in one process; use tensor_parallel_size")
        )
    if a.gpus > tp:
        out.append(_check(None, f"engine: sampling uses {tp} of {a.gpus} GPUs; engine.options.tensor_parallel_size"))
    context = p.engine.options.get("max_model_len") or (planner.policy.max_context if planner.policy else None)
    for node in nodes:
        if node.name.startswith("sample@") and "kv_cache" in node.memory and context:
            one = planner.policy.kv_bytes_per_token(p.engine.dtype, tp) * context
            pool = node.memory["kv_cache"].value
            out.append(
                _check(
                    pool >= one,
                    f"engine: KV cache {gib(pool)}, one sequence of max_model_len {context:,} takes {gib(one)}"
                    + (
                        ""
                        if pool >= one
                        else "; lower max_model_len, raise gpu_memory_utilization or tensor_parallel_size"
                    ),
                )
            )
            break
    return out


def training_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    p, launch, out = planner.params, planner.launch, []
    step = p.train.lists_per_device_batch * launch.processes
    out.append(
        _check(
            p.train.lists_per_step % step == 0,
            f"train.lists_per_step: {p.train.lists_per_step} is a multiple of lists_per_device_batch "
            f"{p.train.lists_per_device_batch} · {launch.processes} process(es)",
        )
    )
    out.append(
        _check(
            launch.processes <= planner.a.gpus, f"train.launch: {launch.processes} process(es), {planner.a.gpus} GPU(s)"
        )
    )
    if launch.processes < planner.a.gpus:
        out.append(_check(None, f"train: uses {launch.processes} of {planner.a.gpus} GPUs; train.launch: {CONFIG_8}"))
    if launch.sharding.kind == "fsdp" and p.train.gradient_checkpointing and launch.sharding.activation_checkpointing:
        out.append(
            _check(
                False, f"train.gradient_checkpointing: {launch.file} does it already, by fsdp_activation_checkpointing"
            )
        )
    if launch.bfloat16 and p.train.autocast == "none":
        out.append(_check(None, f"train.autocast: none, but {launch.file} computes in bfloat16; say bfloat16"))
    if p.train.autocast == "none" and p.policy.dtype == "float32" and planner.big:
        out.append(_check(None, "train.autocast: none computes in float32; bfloat16 is many times faster on a GPU"))
    if p.policy.dtype == "bfloat16" and p.train.learning_rate < 1e-5:
        out.append(
            _check(
                None,
                f"policy.dtype: bfloat16 has 8 significant bits: steps of {p.train.learning_rate:g} round away "
                "in weights above 256 times their size; float32 with train.autocast=bfloat16 keeps them",
            )
        )
    return out


def judge_checks(planner: Planner) -> list[Check]:
    p, out = planner.params, []
    for name, b in p.benchmarks.items():
        if b.judge is None:
            if b.benchmark == "alpaca_eval" or b.options.get("parser") == "model":
                out.append(_check(False, f"benchmarks.{name}.judge: missing; expected a name in the section `judges`"))
            continue
        there = b.judge in p.judges
        hint = "" if there else nearest(b.judge, list(p.judges)) if p.judges else "; the section `judges` is empty"
        out.append(
            _check(there, f"benchmarks.{name}.judge: {b.judge!r} {'is' if there else 'is not'} in `judges`{hint}")
        )
    return out


def memory_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    """The largest of each kind of node (sample, score, reference, train, sft, generate, embed) against the GPU."""
    largest: dict[str, NodePlan] = {}
    for node in nodes:
        kind = node.name.partition("@")[0]
        if node.memory and (node.memory_total or 0) >= (largest[kind].memory_total or 0 if kind in largest else 0):
            largest[kind] = node
    out = []
    for kind, node in largest.items():
        need, have = node.memory_total, planner.a.usable_bytes
        if need is None:
            unknown = next(e.formula for e in node.memory.values() if e.value is None)
            out.append(_check(False, f"{kind}: memory not known: {unknown}"))
            continue
        fits = need <= have
        line = f"{kind}: {gib(need)} per GPU ({node.sharding}) of {gib(have)} usable"
        if not fits:
            parts = sorted(node.memory.items(), key=lambda item: -item[1].value)
            line += f"; largest: {', '.join(f'{name} {gib(e.value)}' for name, e in parts[:2])}"
            if kind in ("train", "sft") and planner.policy is not None:
                line += f"; {what_fits(planner)}"
        out.append(_check(fits, line))
    return out


def options(arch: Architecture, tokens: int, predicted: int) -> list[tuple[str, float]]:
    """Ways to train all weights with float32 master weights and bfloat16 compute, and each one's bytes per GPU."""
    ways = [
        ("AdamW on one GPU", "adamw_torch", Sharding(), True),
        ("optim: adafactor on one GPU", "adafactor", Sharding(), True),
        (f"AdamW with {CONFIG_1}", "adamw_torch", Sharding("fsdp", 1, True, True), False),
        (f"AdamW with {CONFIG_8}", "adamw_torch", Sharding("fsdp", 8, False, True), False),
    ]
    return [
        (
            name,
            total(
                training_memory(
                    arch, tokens=tokens, predicted=predicted, dtype="float32", autocast=True,
                    checkpointing=checkpointing, optimizer=optimizer, sharding=sharding,
                )
            ),
        )
        for name, optimizer, sharding, checkpointing in ways
    ]  # fmt: skip


def what_fits(planner: Planner) -> str:
    """The ways of `options` with one list per device batch, those that fit first."""
    p, a = planner.params, planner.a
    m = planner.list_size(max(len(planner.params.memory_window(s)) for s in p.iterations))
    new = p.sample.max_new_tokens
    found = options(planner.policy, int(planner.packed(1, a.longest_prompt_tokens, m, new)), m * new)
    fitting = [f"{name} {gib(need)}" for name, need in found if need <= a.usable_bytes]
    advice = (
        ", or ".join(fitting) if fitting else "nothing known does: lower sample.max_new_tokens or the list's length"
    )
    return f"with one list per device batch, bfloat16 and gradient checkpointing: {advice}"
