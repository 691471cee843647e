"""Nodes `score` and `best_of_n`: every response read by the reward."""

from typing import Any

from larpo.plan.context import Context
from larpo.plan.formula import Estimate, Unknown
from larpo.plan.memory import Memory, MicroBatch, forward_memory
from larpo.plan.plans import NodePlan
from larpo.plan.time import forward_hours
from larpo.rewards import MODELS, parts

SOURCE_TOKENS = 1224  # PairRM's default of score.options.source_max_length


def score(context: Context, stage: str, s: str) -> NodePlan:
    """k responses of every prompt, and its solution with `sample.gold`."""
    p = context.params
    count, longest = p.prompts.per_iteration, p.sample.max_new_tokens
    return _scoring(context, stage, count, context.candidates, context.prompt, longest)


def best_of_n(context: Context, stage: str, name: str) -> NodePlan:
    """The samples of a benchmark at its first temperature."""
    benchmark = context.params.best_of_n[name].benchmark
    b, items = context.params.benchmarks[benchmark], context.items(benchmark)
    if items is None:
        hours = Unknown("GPU h", context.unknown_items(benchmark))
        return NodePlan(stage, context.params.reward.source, 1, hours=hours)
    prompt = context.a.item_tokens.get(b.benchmark, context.prompt)
    prompts = min(b.generate.sampled_items or items, items)
    return _scoring(context, stage, prompts, b.generate.samples, prompt, b.generate.max_new_tokens)


def comparisons(k: int, options: dict[str, Any]) -> str:
    """PairRM's comparisons of k different responses, as a formula: every ordered pair, or both orders of each step of
    bubble sort's passes; an upper bound there, for a pair that meets again is not compared again."""
    if options.get("comparisons", "full") == "full":
        return f"{k} · {k - 1} ordered pairs"
    steps = [k - 1 - done for done in range(min(int(options.get("passes", 1)), k - 1))]
    return f"2 · ({' + '.join(map(str, steps)) or 0}) comparisons [bubble sort]"


def _scoring(context: Context, stage: str, prompts: int, k: int, prompt: float, max_new: int) -> NodePlan:
    """`k` responses to each of `prompts` prompts of `prompt` tokens, by each part of the reward that is a model."""
    section, wanted, a = context.params.reward, parts(context.params.score), context.a
    models = [(name, options) for name, options in wanted if name in MODELS]
    rules = [name for name, _ in wanted if name not in MODELS]
    notes = [f"rule {', '.join(rules)}, on the CPU"] if rules else []
    if not models or section.source is None:
        return NodePlan(stage, notes=tuple(notes))
    arch = context.architecture(section.source, "reward.model")
    if arch is None:
        return NodePlan(stage, section.source, 1, notes=tuple(notes))
    response, most = a.mean_response(max_new), section.max_length
    memory: Memory = {}
    hours: list[str] = []
    for name, options in models:
        if name == "pairrm":
            source = int(options.get("source_max_length", SOURCE_TOKENS))
            read, asked = comparisons(k, options), min(prompt, source)
            length = asked + 2 * min(response, (most - asked) / 2)
            longest = min(most, min(a.longest_prompt_tokens, source) + 2 * max_new)
        else:
            read, length = f"{k} responses", min(prompt + response, most)
            longest = min(most, a.longest_prompt_tokens + max_new)
        tokens = prompts * Estimate("texts", read).value * length
        attended = length / 2 if arch.kind == "decoder" else length
        hours.append(forward_hours(arch, tokens, attended, section.dtype, a).formula)
        notes.append(f"{prompts:,} prompts · {read} · {length:g} tokens read")
        memory = forward_memory(arch, MicroBatch(max(section.batch_tokens, longest)), dtype=section.dtype, row=longest)
    work = Estimate("GPU h", " + ".join(hours))
    return NodePlan(stage, section.source, 1, "one GPU", memory=memory, hours=work, notes=tuple(notes))
