"""What must fit together before hours are spent: one line each, with what was expected and found."""

from collections.abc import Iterator
from typing import Any

from larpo.errors import UserError, nearest
from larpo.lists.recipes import responses_needed
from larpo.plan.architectures import Architecture
from larpo.plan.context import Context
from larpo.plan.formula import gib, total
from larpo.plan.launch import read_launch
from larpo.plan.memory import MicroBatch, Sharding, training_memory
from larpo.plan.plans import Check, NodePlan
from larpo.plan.sizes import rows_of
from larpo.sources.enough import check_enough, is_looked_at

CONFIG_8 = "configs/fsdp-8x80gb.yaml"
CONFIG_1 = "configs/fsdp-1x80gb-offload.yaml"


def all_checks(context: Context, nodes: list[NodePlan]) -> Iterator[Check]:
    """Checks across sections, as far as the nodes there are need them, and each node's memory against the GPU."""
    kinds = {node.kind for node in nodes}
    yield from context_checks(context, kinds)
    if kinds & {"score", "best_of_n"}:
        yield from reward_checks(context)
    yield from data_checks(context, nodes)
    if "lists" in kinds:
        needed, k = responses_needed(context.params.lists), context.params.sample.responses
        recipe = context.params.lists.recipe
        yield Check(needed <= k, f"lists.recipe: {recipe} needs {needed} responses, sample.responses is {k}")
    if kinds & {"sample", "generate"} and context.params.engine.name == "vllm":
        yield from vllm_checks(context, nodes)
    if "train" in kinds:
        yield from format_checks(context)
    yield from launch_checks(context, nodes)
    if "evaluate" in kinds:
        yield from judge_checks(context)
    yield from memory_checks(context, nodes)


def context_checks(context: Context, kinds: set[str]) -> Iterator[Check]:
    """Prompt and response fit into what the policy reads."""
    p, prompt = context.params, context.a.longest_prompt_tokens
    longest = {"sample.max_new_tokens": p.sample.max_new_tokens} if "sample" in kinds else {}
    longest |= {f"benchmarks.{n}.generate.max_new_tokens": b.generate.max_new_tokens for n, b in p.benchmarks.items()}
    limits = {p.policy.model: context.policy.max_context if context.policy else None}
    if p.engine.name == "vllm":
        limits["engine.options.max_model_len"] = p.engine.options.get("max_model_len")
    for key, new in longest.items():
        for where, known in limits.items():
            if known is not None:
                yield Check(prompt + new <= known, f"{key}: {prompt:,} + {new:,} tokens of {known:,} ({where})")


def reward_checks(context: Context) -> Iterator[Check]:
    """What the reward model reads holds prompt and response: a prompt may be cut, a classifier's response may not."""
    p, a, section = context.params, context.a, context.params.reward
    arch = context.architectures.get(section.source)
    if arch is None:
        return
    pairs, most, source = section.kind == "pairrm", section.max_length, section.source
    head = f"reward.max_length: {most:,} tokens"
    if most > arch.max_context and not arch.relative_positions:
        yield Check(False, f"{head}, {source} reads {arch.max_context:,}")
    mean = a.prompt_tokens + context.response * (2 if pairs else 1)
    longest = a.longest_prompt_tokens + p.sample.max_new_tokens * (2 if pairs else 1)
    if mean > most:
        yield Check(False, f"{head} of {source}, the mean is {mean:g}")
    elif not pairs and p.sample.max_new_tokens >= most:
        line = f"{head} do not hold sample.max_new_tokens={p.sample.max_new_tokens:,}"
        yield Check(False, f"{line}; a response is never cut")
    elif longest <= most:
        yield Check(True, f"{head} of {source}, the longest is {longest:,}")
    else:
        cut = "longer candidates are cut" if pairs else "longer prompts are cut"
        yield Check(None, f"{head} of {source}, the longest is {longest:,}: {cut}")


def data_checks(context: Context, nodes: list[NodePlan]) -> Iterator[Check]:
    """Sources have as many prompts and examples as are asked for, as far as that is known."""
    p, names = context.params, {node.name for node in nodes}
    asked = []
    if any(node.kind == "prompts" for node in nodes):
        asked.append(("prompts.per_iteration", p.prompts.per_iteration, p.prompts))
        try:
            check_enough(p)
        except UserError as error:
            yield Check(False, str(error).removeprefix("params.yaml: "))
    asked += [
        (f"sft.{name}.examples", section.examples, section.data)
        for name, section in p.sft.items()
        if section.examples and f"sft@{name}" in names
    ]
    for key, count, source in asked:
        # Of a file that was looked at the number is known, which the share of its rows only estimates.
        known = source.source != "dataset" or is_looked_at(source)
        rows = None if known else rows_of(source.dataset, context.a)
        if rows is not None:
            there = round(rows * (1 - source.held_out))
            yield Check(count <= there, f"{key}: {count:,} of {there:,} ({source.dataset})")


def vllm_checks(context: Context, nodes: list[NodePlan]) -> Iterator[Check]:
    options, gpus, tp, policy = context.params.engine.options, context.a.gpus, context.tensor_parallel, context.policy
    key = "engine.options.tensor_parallel_size"
    yield Check(tp <= gpus, f"{key}: {tp} of {gpus} GPU(s)")
    if policy is not None:
        yield Check(policy.heads % tp == 0, f"{key}: {tp} divides {policy.heads} heads")
    if int(options.get("data_parallel_size", 1)) > 1:
        line = "engine.options.data_parallel_size: vLLM refuses it in one process; use tensor_parallel_size"
        yield Check(False, line)
    if gpus > tp:
        yield Check(None, f"engine: sampling uses {tp} of {gpus} GPUs; {key}")
    length = options.get("max_model_len") or (policy.max_context if policy else None)
    pools = [n.memory["kv_cache"].value for n in nodes if n.kind in ("sample", "generate") and "kv_cache" in n.memory]
    if pools and length:
        one = policy.kv_bytes_per_token(context.params.engine.dtype, tp) * length
        line = f"engine: KV cache {gib(pools[0])}, one sequence of max_model_len {length:,} takes {gib(one)}"
        fix = "; lower max_model_len, raise gpu_memory_utilization or tensor_parallel_size"
        yield Check(pools[0] >= one, line if pools[0] >= one else line + fix)


def launch_checks(context: Context, nodes: list[NodePlan]) -> Iterator[Check]:
    """Every training (train, sft, reward.train): its step is whole, its processes are there."""
    p, names, gpus = context.params, {node.name for node in nodes}, context.a.gpus
    trained: list[tuple[str, Any, str]] = []
    if any(node.kind == "reference" for node in nodes):
        processes = read_launch(p.reference.launch, context.file, "reference").processes
        yield Check(processes <= gpus, f"reference.launch: {processes} process(es), {gpus} GPU(s)")
    if any(node.kind == "train" for node in nodes):
        trained.append(("train", p.train, "lists"))
    trained += [(f"sft.{name}", section, "examples") for name, section in p.sft.items() if f"sft@{name}" in names]
    if p.reward.train is not None and "reward" in names:
        trained.append(("reward.train", p.reward.train, "pairs"))
    for key, section, unit in trained:
        launch = read_launch(section.launch, context.file, key)
        each, step = getattr(section, f"{unit}_per_device_batch"), getattr(section, f"{unit}_per_step")
        if each is not None:
            line = f"{key}.{unit}_per_step: {step} is a multiple of {unit}_per_device_batch {each} · "
            yield Check(step % (each * launch.processes) == 0, f"{line}{launch.processes} process(es)")
        yield Check(launch.processes <= gpus, f"{key}.launch: {launch.processes} process(es), {gpus} GPU(s)")
        if launch.processes < gpus and key != "reward.train":  # which is trained in one process
            yield Check(None, f"{key}: uses {launch.processes} of {gpus} GPUs; {key}.launch: {CONFIG_8}")
        sharding = launch.sharding
        if sharding.kind == "fsdp" and section.gradient_checkpointing and sharding.activation_checkpointing:
            line = f"{key}.gradient_checkpointing: {launch.file} does it already, by fsdp_activation_checkpointing"
            yield Check(False, line)


def format_checks(context: Context) -> Iterator[Check]:
    """Number formats of `train`."""
    p, launch, policy = context.params, context.launch, context.policy
    if launch.bfloat16 and p.train.autocast == "none":
        yield Check(None, f"train.autocast: none, but {launch.file} computes in bfloat16; say bfloat16")
    if p.train.autocast == "none" and p.policy.dtype == "float32" and policy is not None and policy.parameters > 1e9:
        yield Check(None, "train.autocast: none computes in float32; bfloat16 is many times faster on a GPU")


def judge_checks(context: Context) -> Iterator[Check]:
    judges = context.params.judges
    for name, b in context.params.benchmarks.items():
        key = f"benchmarks.{name}.judge"
        if b.judge is None:
            if b.benchmark == "alpaca_eval" or b.options.get("parser") == "model":
                yield Check(False, f"{key}: missing; expected a name in the section `judges`")
        elif b.judge in judges:
            yield Check(True, f"{key}: {b.judge!r} is in `judges`")
        else:
            hint = nearest(b.judge, list(judges)) if judges else "; the section `judges` is empty"
            yield Check(False, f"{key}: {b.judge!r} is not in `judges`{hint}")


def memory_checks(context: Context, nodes: list[NodePlan]) -> Iterator[Check]:
    """The largest of each kind of node (sample, score, reference, train, sft, generate, embed, …) against the GPU."""
    largest: dict[str, NodePlan] = {}
    for node in nodes:
        kind, need = node.kind, node.memory_total
        if node.memory and (need is None or need >= (largest[kind].memory_total or 0 if kind in largest else 0)):
            largest[kind] = node
    for kind, node in largest.items():
        need, have = node.memory_total, context.a.usable_bytes
        if need is None:
            unknown = next(e.formula for e in node.memory.values() if e.value is None)
            yield Check(False, f"{kind}: memory not known: {unknown}")
            continue
        line = f"{kind}: {gib(need)} per GPU ({node.sharding}) of {gib(have)} usable"
        if need > have:
            parts = sorted(node.memory.items(), key=lambda item: -item[1].value)
            line += f"; largest: {', '.join(f'{name} {gib(e.value)}' for name, e in parts[:2])}"
            if kind == "train" and context.policy is not None:
                line += f"; {what_fits(context)}"
        yield Check(need <= have, line)


def options(arch: Architecture, batch: MicroBatch) -> dict[str, float]:
    """Ways to train all weights with bfloat16 compute, and each one's bytes per GPU."""
    ways = {
        "AdamW on one GPU": ("adamw_torch", "float32", Sharding()),
        "train.optimizer adafactor on one GPU": ("adafactor", "float32", Sharding()),
        "adamw_8bit and policy.dtype bfloat16 on one GPU": ("adamw_torch_8bit", "bfloat16", Sharding()),
        f"AdamW with {CONFIG_1}": ("adamw_torch", "float32", Sharding("fsdp", 1, True, True)),
        f"AdamW with {CONFIG_8}": ("adamw_torch", "float32", Sharding("fsdp", 8, False, True)),
    }
    found = {}
    for way, (optimizer, dtype, sharding) in ways.items():
        numbers = {"dtype": dtype, "autocast": dtype == "float32", "checkpointing": True}
        memory = training_memory(arch, batch, **numbers, optimizer=optimizer, sharding=sharding)
        found[way] = total(memory.values())
    return found


def what_fits(context: Context) -> str:
    """The ways of `options` that fit, with one list per device batch."""
    m = context.list_size(max(map(context.window, context.params.iterations)))
    ways = options(context.policy, context.in_memory(m, 1))
    fitting = [f"{way} {gib(need)}" for way, need in ways.items() if need <= context.a.usable_bytes]
    advice = ", or ".join(fitting) or "nothing known does: lower sample.max_new_tokens or the list's length"
    return f"with one list per device batch, bfloat16 and gradient checkpointing: {advice}"
