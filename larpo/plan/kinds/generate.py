"""Nodes `sample` and `generate`: tokens that the policy writes, by the engine of params.yaml."""

import math
from dataclasses import replace

from larpo.plan.context import Context
from larpo.plan.formula import Estimate, Unknown, number
from larpo.plan.memory import Sharding, transformers_engine, vllm_engine
from larpo.plan.plans import NodePlan
from larpo.plan.time import decoding_hours


def sample(context: Context, stage: str, s: str) -> NodePlan:
    """k responses to every prompt of iteration s."""
    m, k = context.params.prompts.per_iteration, context.params.sample.responses
    temperatures = len(context.params.iterations[s].temperatures)
    max_new, count = context.params.sample.max_new_tokens, f"{m:,} prompts · {k} responses"
    return _generation(context, stage, m * temperatures, context.prompt, count, max_new, k // temperatures)


def generate(context: Context, stage: str, policy: str, name: str) -> NodePlan:
    """A greedy answer, its refinements, and samples of each item of a benchmark."""
    b = context.params.benchmarks[name]
    items, g = context.items(name), b.generate
    if items is None:
        unknown = Unknown("tokens", context.unknown_items(name))
        return NodePlan(stage, context.params.policy.model, 1, sample_tokens=unknown)
    sampled = min(g.sampled_items or items, items) * g.samples * len(g.temperatures)
    first = "sampled" if g.temperature else "greedy"
    count = f"({number(items)} items · {1 + g.refinements} [{first}] + {number(sampled)} samples)"
    prompt = context.a.item_tokens.get(b.benchmark, context.prompt)
    asked = items * (1 + g.refinements) + (sampled / g.samples if g.samples else 0)
    return _generation(context, stage, asked, prompt, count, g.max_new_tokens, max(g.samples, 1))


def _generation(
    context: Context, stage: str, prompts: float, prompt: float, responses: str, max_new: int, parallel: int
) -> NodePlan:
    """`responses` in all, as a formula, to `prompts` prompts of `prompt` tokens; `parallel` of them share one."""
    engine, a = context.params.engine, context.a
    response = a.mean_response(max_new)
    tokens = Estimate("tokens", f"{responses} · {number(response)} tokens")
    longest = a.longest_prompt_tokens + max_new
    wanted = min(engine.batch_size * parallel, math.ceil(Estimate("responses", responses).value))
    vllm = engine.name == "vllm"
    gpus = context.tensor_parallel if vllm else 1
    sharding = Sharding("tensor_parallel", gpus) if gpus > 1 else Sharding()
    base = NodePlan(stage, context.params.policy.model, gpus, f"{engine.name}, {sharding}", sample_tokens=tokens)
    if context.policy is None:
        return base
    if vllm:
        decoding = vllm_engine(
            context.policy,
            dtype=engine.dtype,
            context=longest,
            wanted=wanted,
            tensor_parallel=gpus,
            utilisation=float(engine.options.get("gpu_memory_utilization", 0.9)),
            a=a,
        )
    else:
        decoding = transformers_engine(context.policy, dtype=engine.dtype, context=longest, sequences=wanted)
    hours = decoding_hours(
        context.policy,
        prompts=prompts,
        prompt_tokens=prompt,
        new_tokens=tokens.value,
        response=response,
        sequences=decoding.sequences,
        dtype=engine.dtype,
        utilisation=a.decode_utilisation if vllm else a.decode_utilisation_transformers,
        a=a,
    )
    return replace(base, memory=decoding.memory, hours=hours)
