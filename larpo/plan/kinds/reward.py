"""What rewards cost: the model's training, every response of an iteration scored, and best-of-N."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from larpo.config.reward import PairsParams, RewardParams
from larpo.plan.architectures import BYTES, Architecture
from larpo.plan.estimates import Estimate, forward_hours, forward_memory, gib, number
from larpo.plan.launch import read_launch
from larpo.plan.plans import NodePlan
from larpo.plan.sizes import rows_of, unknown_size
from larpo.rewards import MODELS, parts
from larpo.sources.careless_sums import sum_pairs

if TYPE_CHECKING:
    from larpo.plan.planner import Planner

SOURCE_TOKENS = 1224  # PairRM's default of score.options.source_max_length


def reward(planner: Planner) -> NodePlan:
    """The node `reward`: a checkpoint fetched, or a head (and its body) trained on pairs; accuracies measured."""
    section, a = planner.params.reward, planner.a
    if section.source is None:
        return NodePlan("reward", notes=("no model: rules, on the CPU",))
    arch = planner.architecture(section.source, "reward.model")
    if arch is None:
        return NodePlan("reward", section.source)
    size = BYTES[section.dtype]
    note = f"weights {number(arch.parameters)} · {size} B = {gib(arch.parameters * size)}"
    each = min(a.sft_tokens, section.max_length)
    measured = [(f"reward.checks.{name}", pairs, 1.0) for name, pairs in section.checks.items()]
    node = NodePlan("reward", section.source, notes=(note,))
    if section.train is not None:
        t, batch = section.train, section.train.pairs_per_device_batch
        measured.insert(0, ("reward.train", t.data, t.held_out))
        pairs, seen = _pairs(t.data, a), 0.0
        if pairs is None:
            tokens = Estimate(None, "tokens", unknown_size(t.data.name, "reward.train.data"))
        else:
            seen = pairs * (1 - t.held_out) * t.epochs
            text = f"{pairs:,} pairs · (1 − {t.held_out:g}) · {t.epochs} epochs"
            if 0 < t.max_steps * t.pairs_per_step < seen:
                seen, text = t.max_steps * t.pairs_per_step, f"{t.max_steps:,} steps · {t.pairs_per_step} pairs"
            tokens = Estimate(seen * 2 * each, "tokens", f"{text} · 2 · {each:g} tokens")
        # Trained in float32, whatever dtype it scores in; one logit per response needs no vocabulary.
        node = planner.optimisation(
            "reward",
            arch,
            section.source,
            "float32",
            t,
            tokens,
            seen / batch,
            2 * batch * section.max_length,
            0,
            each,
            read_launch(t.launch, planner.name, "reward.train"),
            rows=2 * batch,
        )
        node = replace(node, notes=(note,))
    return _with_measuring(planner, node, arch, section, each, measured) if measured else node


def _pairs(pairs: PairsParams, a: Any) -> int | None:
    """How many there are; None where nobody knows."""
    if pairs.source == "sums":
        there = sum(1 for _ in sum_pairs(pairs.sums.digits, pairs.sums.errors))
        return min(pairs.examples or there, there)
    return pairs.examples or rows_of(str(pairs.data), a)


def _with_measuring(
    planner: Planner,
    node: NodePlan,
    arch: Architecture,
    section: RewardParams,
    each: float,
    measured: list[tuple[str, PairsParams, float]],
) -> NodePlan:
    """Both responses of every pair that accuracy is reported on are scored once."""
    unknown = [
        unknown_size(pairs.name, f"{key}.data") for key, pairs, _ in measured if _pairs(pairs, planner.a) is None
    ]
    if unknown:
        return replace(node, gpus=node.gpus or 1, hours=Estimate(None, "GPU h", "; ".join(unknown)))
    count = sum(_pairs(pairs, planner.a) * share for _, pairs, share in measured)
    hours = forward_hours(arch, 2 * count * each, each / (2 if arch.kind == "decoder" else 1), section.dtype, planner.a)
    if node.hours is None:
        memory = forward_memory(arch, tokens=section.batch_tokens, predicted=0, dtype=section.dtype)
        return replace(node, gpus=1, sharding="one GPU", memory=memory, hours=hours)
    both = f"{node.hours.formula} + {hours.formula} [accuracies]"
    return replace(node, hours=Estimate(node.hours.value + hours.value, "GPU h", both))


def score(planner: Planner, s: str) -> NodePlan:
    """The node `score@s`: k responses of every prompt, and its solution with `sample.gold`."""
    p = planner.params
    return scoring(
        planner, f"score@{s}", p.prompts.per_iteration, planner.candidates, planner.prompt, p.sample.max_new_tokens
    )


def best_of_n(planner: Planner, name: str) -> NodePlan:
    """The node `best_of_n@NAME`: the samples of a benchmark at its first temperature."""
    wanted = planner.params.best_of_n[name]
    b = planner.params.benchmarks[wanted.benchmark]
    stage, items = f"best_of_n@{name}", planner.benchmark_items(wanted.benchmark)
    if items is None:
        unknown = f"benchmarks.{wanted.benchmark}.items: null, and the size of {b.benchmark} is not known"
        return NodePlan(stage, planner.params.reward.source, 1, hours=Estimate(None, "GPU h", unknown))
    prompt = planner.a.item_tokens.get(b.benchmark, planner.prompt)
    prompts = min(b.generate.sampled_items or items, items)
    return scoring(planner, stage, prompts, b.generate.samples, prompt, b.generate.max_new_tokens)


def comparisons(k: int, options: dict[str, Any]) -> tuple[int, str]:
    """(PairRM's comparisons of k different responses, how they are counted): every ordered pair, or both orders of each
    step of bubble sort's passes; an upper bound there, for a pair that meets again is not compared again."""
    if options.get("comparisons", "full") == "full":
        return k * (k - 1), f"{k} · {k - 1} ordered pairs"
    steps = [k - 1 - done for done in range(min(int(options.get("passes", 1)), k - 1))]
    return 2 * sum(steps), f"2 · ({' + '.join(map(str, steps)) or 0}) comparisons [bubble sort]"


def scoring(planner: Planner, stage: str, prompts: int, k: int, prompt: float, max_new: int) -> NodePlan:
    """`k` responses to each of `prompts` prompts of `prompt` tokens, by each part of the reward that is a model."""
    section, wanted = planner.params.reward, parts(planner.params.score)
    models = [(name, options) for name, options in wanted if name in MODELS]
    rules = [name for name, _ in wanted if name not in MODELS]
    told = (f"rule {', '.join(rules)}, on the CPU",) if rules else ()
    if not models or section.source is None:
        return NodePlan(stage, notes=told)
    arch = planner.architecture(section.source, "reward.model")
    if arch is None:
        return NodePlan(stage, section.source, 1, notes=told)
    response, most = planner.a.mean_response(max_new), section.max_length
    memory: dict[str, Estimate] = {}
    hours, formulas, notes = 0.0, [], list(told)
    for name, options in models:
        if name == "pairrm":
            source = int(options.get("source_max_length", SOURCE_TOKENS))
            each, counted = comparisons(k, options)
            asked = min(prompt, source)
            length = asked + 2 * min(response, (most - asked) / 2)
            longest = min(most, min(planner.a.longest_prompt_tokens, source) + 2 * max_new)
        else:
            each, counted, length = k, f"{k} responses", min(prompt + response, most)
            longest = min(most, planner.a.longest_prompt_tokens + max_new)
        attended = length / 2 if arch.kind == "decoder" else length
        found = forward_hours(arch, prompts * each * length, attended, section.dtype, planner.a)
        hours += found.value
        formulas.append(found.formula)
        notes.append(f"{prompts:,} prompts · {counted} · {length:g} tokens read")
        memory = forward_memory(
            arch, tokens=max(section.batch_tokens, longest), predicted=0, dtype=section.dtype, row=longest
        )
    return NodePlan(
        stage,
        section.source,
        1,
        "one GPU",
        memory=memory,
        hours=Estimate(hours, "GPU h", " + ".join(formulas)),
        notes=tuple(notes),
    )
