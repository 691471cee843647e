"""What must fit together before hours are spent: one line each, with what was expected and found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from larpo.errors import nearest
from larpo.lists.recipes import responses_needed
from larpo.plan.architectures import Architecture
from larpo.plan.estimates import Sharding, gib, total, training_memory
from larpo.plan.launch import read_launch
from larpo.plan.plans import Check, NodePlan
from larpo.plan.sizes import rows_of

if TYPE_CHECKING:
    from larpo.plan.planner import Planner

CONFIG_8 = "configs/fsdp-8x80gb.yaml"
CONFIG_1 = "configs/fsdp-1x80gb-offload.yaml"


def all_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    """Checks across sections, as far as the nodes there are need them, and each node's memory against the GPU."""
    kinds = {node.kind for node in nodes}
    return [
        *context_checks(planner, kinds),
        *(reward_checks(planner) if kinds & {"score", "best_of_n"} else []),
        *(data_checks(planner, nodes)),
        *(list_checks(planner) if "lists" in kinds else []),
        *(engine_checks(planner, nodes) if kinds & {"sample", "generate"} else []),
        *(training_checks(planner) if "train" in kinds else []),
        *launch_checks(planner, nodes),
        *(judge_checks(planner) if "evaluate" in kinds else []),
        *memory_checks(planner, nodes),
    ]


def context_checks(planner: Planner, kinds: set[str]) -> list[Check]:
    """Prompt and response fit into what the policy reads."""
    p, a, out = planner.params, planner.a, []
    wanted = {}
    if "sample" in kinds:
        wanted["sample.max_new_tokens"] = (a.longest_prompt_tokens, p.sample.max_new_tokens)
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
                out.append(Check(fits, f"{key}: {prompt:,} + {new:,} tokens of {known:,} ({where})"))
    return out


def reward_checks(planner: Planner) -> list[Check]:
    """What the reward model reads holds prompt and response: a prompt may be cut, a classifier's response may not."""
    p, a, section = planner.params, planner.a, planner.params.reward
    arch = planner.architectures.get(section.source)
    if arch is None:
        return []
    pairs = section.kind == "pairrm"
    most, out = section.max_length, []
    if most > arch.max_context and not arch.relative_positions:
        line = f"reward.max_length: {most:,} tokens, {section.source} reads {arch.max_context:,}"
        out.append(Check(False, line))
    mean = a.prompt_tokens + planner.response * (2 if pairs else 1)
    longest = a.longest_prompt_tokens + p.sample.max_new_tokens * (2 if pairs else 1)
    if mean > most:
        out.append(Check(False, f"reward.max_length: {most:,} tokens of {section.source}, the mean is {mean:g}"))
    elif not pairs and p.sample.max_new_tokens >= most:
        line = f"reward.max_length: {most:,} tokens do not hold sample.max_new_tokens={p.sample.max_new_tokens:,}"
        out.append(Check(False, f"{line}; a response is never cut"))
    else:
        fits, what = longest <= most, "longer candidates are cut" if pairs else "longer prompts are cut"
        line = f"reward.max_length: {most:,} tokens of {section.source}, the longest is {longest:,}"
        out.append(Check(True if fits else None, line + ("" if fits else f": {what}")))
    return out


def data_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    """Data sets whose size is known have as many prompts and examples as are asked for."""
    p, out, names = planner.params, [], {node.name for node in nodes}
    wanted = []
    if any(node.kind == "prompts" for node in nodes):
        wanted.append(("prompts.per_iteration", p.prompts.per_iteration, p.prompts))
    wanted += [
        (f"sft.{name}.examples", section.examples, section.data)
        for name, section in p.sft.items()
        if section.examples and f"sft@{name}" in names
    ]
    for key, count, source in wanted:
        rows = rows_of(source.dataset, planner.a) if source.source == "dataset" else None
        if rows is not None:
            there = round(rows * (1 - source.held_out))
            out.append(Check(count <= there, f"{key}: {count:,} of {there:,} ({source.dataset})"))
    return out


def list_checks(planner: Planner) -> list[Check]:
    p = planner.params
    needed, k = responses_needed(p.lists), p.sample.responses
    return [Check(needed <= k, f"lists.recipe: {p.lists.recipe} needs {needed} responses, sample.responses is {k}")]


def engine_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    p, a, out = planner.params, planner.a, []
    if p.engine.name != "vllm":
        return out
    tp = planner.tensor_parallel
    out.append(Check(tp <= a.gpus, f"engine.options.tensor_parallel_size: {tp} of {a.gpus} GPU(s)"))
    if planner.policy is not None:
        heads = planner.policy.heads
        out.append(Check(heads % tp == 0, f"engine.options.tensor_parallel_size: {tp} divides {heads} heads"))
    if int(p.engine.options.get("data_parallel_size", 1)) > 1:
        out.append(
            Check(False, "engine.options.data_parallel_size: vLLM refuses it in one process; use tensor_parallel_size")
        )
    if a.gpus > tp:
        out.append(Check(None, f"engine: sampling uses {tp} of {a.gpus} GPUs; engine.options.tensor_parallel_size"))
    context = p.engine.options.get("max_model_len") or (planner.policy.max_context if planner.policy else None)
    for node in nodes:
        if node.kind in ("sample", "generate") and "kv_cache" in node.memory and context:
            one = planner.policy.kv_bytes_per_token(p.engine.dtype, tp) * context
            pool = node.memory["kv_cache"].value
            out.append(
                Check(
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


def launch_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    """Every training (train, sft, reward.train): its step is whole, its processes are there."""
    p, out, names = planner.params, [], {node.name for node in nodes}
    found: list[tuple[str, Any, str]] = []
    if any(node.kind == "train" for node in nodes):
        found.append(("train", p.train, "lists"))
    found += [(f"sft.{name}", section, "examples") for name, section in p.sft.items() if f"sft@{name}" in names]
    if p.reward.train is not None and "reward" in names:
        found.append(("reward.train", p.reward.train, "pairs"))
    for key, section, unit in found:
        launch = read_launch(section.launch, planner.name, key)
        each, step = getattr(section, f"{unit}_per_device_batch"), getattr(section, f"{unit}_per_step")
        out.append(
            Check(
                step % (each * launch.processes) == 0,
                f"{key}.{unit}_per_step: {step} is a multiple of {unit}_per_device_batch {each} · "
                f"{launch.processes} process(es)",
            )
        )
        out.append(
            Check(
                launch.processes <= planner.a.gpus,
                f"{key}.launch: {launch.processes} process(es), {planner.a.gpus} GPU(s)",
            )
        )
        if launch.processes < planner.a.gpus and key != "reward.train":  # which is trained in one process
            line = f"{key}: uses {launch.processes} of {planner.a.gpus} GPUs; {key}.launch: {CONFIG_8}"
            out.append(Check(None, line))
        if (
            launch.sharding.kind == "fsdp"
            and section.gradient_checkpointing
            and launch.sharding.activation_checkpointing
        ):
            line = f"{key}.gradient_checkpointing: {launch.file} does it already, by fsdp_activation_checkpointing"
            out.append(Check(False, line))
    return out


def training_checks(planner: Planner) -> list[Check]:
    """Number formats of `train`."""
    p, launch, out = planner.params, planner.launch, []
    if launch.bfloat16 and p.train.autocast == "none":
        out.append(Check(None, f"train.autocast: none, but {launch.file} computes in bfloat16; say bfloat16"))
    if p.train.autocast == "none" and p.policy.dtype == "float32" and planner.big:
        out.append(Check(None, "train.autocast: none computes in float32; bfloat16 is many times faster on a GPU"))
    if p.policy.dtype == "bfloat16" and p.train.learning_rate < 1e-5:
        out.append(
            Check(
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
                out.append(Check(False, f"benchmarks.{name}.judge: missing; expected a name in the section `judges`"))
            continue
        there = b.judge in p.judges
        hint = "" if there else nearest(b.judge, list(p.judges)) if p.judges else "; the section `judges` is empty"
        out.append(
            Check(there, f"benchmarks.{name}.judge: {b.judge!r} {'is' if there else 'is not'} in `judges`{hint}")
        )
    return out


def memory_checks(planner: Planner, nodes: list[NodePlan]) -> list[Check]:
    """The largest of each kind of node (sample, score, reference, train, sft, generate, embed, …) against the GPU."""
    largest: dict[str, NodePlan] = {}
    for node in nodes:
        kind, need = node.kind, node.memory_total
        if node.memory and (need is None or need >= (largest[kind].memory_total or 0 if kind in largest else 0)):
            largest[kind] = node
    out = []
    for kind, node in largest.items():
        need, have = node.memory_total, planner.a.usable_bytes
        if need is None:
            unknown = next(e.formula for e in node.memory.values() if e.value is None)
            out.append(Check(False, f"{kind}: memory not known: {unknown}"))
            continue
        fits = need <= have
        line = f"{kind}: {gib(need)} per GPU ({node.sharding}) of {gib(have)} usable"
        if not fits:
            parts = sorted(node.memory.items(), key=lambda item: -item[1].value)
            line += f"; largest: {', '.join(f'{name} {gib(e.value)}' for name, e in parts[:2])}"
            if kind == "train" and planner.policy is not None:
                line += f"; {what_fits(planner)}"
        out.append(Check(fits, line))
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
                    arch,
                    tokens=tokens,
                    predicted=predicted,
                    dtype="float32",
                    autocast=True,
                    checkpointing=checkpointing,
                    optimizer=optimizer,
                    sharding=sharding,
                )
            ),
        )
        for name, optimizer, sharding, checkpointing in ways
    ]


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
