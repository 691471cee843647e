"""Prompts and items made again, and whether every response and output is what the parameters ask for.

As in `larpo.audit.science.check`, the run's folder is the working folder.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from larpo import tables
from larpo.audit.compare.values import different_column, different_rows
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude
from larpo.audit.science import expected, leaks
from larpo.benchmarks import build_benchmark
from larpo.benchmarks.refinement import revised
from larpo.config.sections import SourceParams
from larpo.hashing import seed_of
from larpo.models.chat import end_tokens, gold_rows, render_prompts, turn_end
from larpo.models.load import load_tokenizer
from larpo.sources.contamination import draw_apart
from larpo.sources.prompts import prompt_id

PART = "science"


def ids(run: AuditedRun, name: str) -> Check:
    failures, count = [], 0
    for s in run.params.iterations:
        prompts = tables.read("prompts", path := f"data/prompts/{s}.parquet")
        ids = [
            prompt_id(source, messages) for source, messages in zip(prompts["source"], prompts["messages"], strict=True)
        ]
        failures += different_column(path, prompts, prompt_id=ids)
        responses = tables.read("responses", path := f"data/sample/{s}.parquet")
        failures += different_column(path, responses, response_id=expected.response_ids(responses))
        count += len(prompts) + len(responses)
    return conclude(
        PART, name, count, f"{count} ids of prompts and responses hashed again from their content", failures
    )


def prompts(run: AuditedRun, name: str) -> Check:
    """M prompts x from D_X, by the seed."""
    params, failures, count, unread = run.params, [], 0, []
    for s in params.iterations:
        recorded = tables.read("prompts", path := f"data/prompts/{s}.parquet")
        if why := _elsewhere(params.prompts):
            unread.append(why)
            continue
        seed = seed_of(params.seed, "prompts", s if params.prompts.draw == "fresh" else "same")
        again, _ = draw_apart(params.prompts, seed, lambda: leaks.evaluation_items(params))
        lines = different_rows(path, recorded, again, tables.SCHEMAS["prompts"].names)
        if lines and (why := _other_generator(run, params.prompts, f"prompts@{s}")):
            unread.append(why)
            continue
        failures += lines
        count += len(recorded)
    return _made(name, count, "prompts drawn again by the seed", failures, unread)


def items(run: AuditedRun, name: str) -> Check:
    params, failures, count, unread = run.params, [], 0, []
    for benchmark in params.benchmarks:
        recorded = tables.read("items", path := f"data/items/{benchmark}.parquet")
        bench: Any = build_benchmark(params, benchmark)
        if hasattr(bench, "source"):
            options = bench.options
            needed = [bench.source, *([options.examples] if getattr(options, "shots", 0) else [])]
            needed += [options.reference] if hasattr(options, "reference") else []
            away = [str(data) for data in needed if data is None or not Path(data).exists()]
            why = f"{benchmark}: its data is not here, and nothing is fetched" if away else None
        else:
            why = _elsewhere(params.prompts)
        if why:
            unread.append(why)
            continue
        lines = different_rows(path, recorded, bench.items(), tables.SCHEMAS["items"].names)
        generated = not hasattr(bench, "source")
        if lines and generated and (why := _other_generator(run, params.prompts, f"items@{benchmark}")):
            unread.append(why)
            continue
        failures += lines
        count += len(recorded)
    return _made(name, count, "items made again from their source", failures, unread)


def _made(name: str, count: int, detail: str, failures: list[str], unread: list[str]) -> Check:
    return conclude(PART, name, count, f"{count} {detail}" if count else "none", failures, list(dict.fromkeys(unread)))


def _elsewhere(source: SourceParams) -> str | None:
    """Why the source cannot be drawn from here; None where it can."""
    if source.source == "dataset" and not Path(source.dataset or "").is_file():
        return f"{source.dataset} is not here, and nothing is fetched"
    return None


def _other_generator(run: AuditedRun, source: SourceParams, node: str) -> str | None:
    """Why a generator may make other rows here than there. It is said once they differ: a version is a claim."""
    here, there = version("reasoning-gym"), run.recorded(node).packages.get("reasoning-gym")
    if source.source != "reasoning_gym" or here == there:
        return None
    return f"{node}: other rows are made here, by reasoning-gym {here}; its manifest claims {there}, which is not here"


def rows(run: AuditedRun, name: str) -> Check:
    """As many responses and outputs as the parameters ask for, at their temperatures, by their seeds."""
    params, failures, count = run.params, [], 0
    own = params.engine.name == "vllm"
    for s, iteration in params.iterations.items():
        recorded = tables.read("responses", path := f"data/sample/{s}.parquet")
        order = tables.read("prompts", f"data/prompts/{s}.parquet")["prompt_id"].tolist()
        seed = seed_of(params.seed, "sample", s)
        seeds = [
            expected.batch_seeds(len(order), seed, f"{i}-t{t:g}", params.engine.batch_size, own)
            for i, t in enumerate(iteration.temperatures)
        ]
        n = params.sample.responses // len(iteration.temperatures)
        again = expected.sampled_rows(order, int(s), iteration.temperatures, n, seeds)
        sampled = recorded[recorded["origin"] != "gold"]
        failures += different_rows(path, sampled, again, list(again.columns))
        failures += expected.log_probabilities(path, recorded)
        if not params.sample.gold and len(sampled) < len(recorded):
            failures.append(f"{path}: {len(recorded) - len(sampled)} solutions among them, params.yaml asks for none")
        count += len(recorded)
    for benchmark, policy in run.evaluated:
        recorded = tables.read("outputs", path := f"data/generate/{policy}-{benchmark}.parquet")
        order = tables.read("items", f"data/items/{benchmark}.parquet")["prompt_id"].tolist()
        again = expected.output_rows(order, params.benchmarks[benchmark].generate)
        failures += different_rows(path, recorded, again, list(again.columns))
        count += len(recorded)
    return conclude(PART, name, count, f"{count} responses and outputs, as many and as params.yaml asks", failures)


def tokens(run: AuditedRun, name: str) -> Check:
    """Texts, prompts' tokens and ends of every response and output, by the tokenizer of the policy that gave it."""
    params, failures, count = run.params, [], 0
    exact = params.engine.name != "vllm"
    known: dict[str, PreTrainedTokenizerBase] = {}

    def of(policy: str) -> tuple[PreTrainedTokenizerBase, list[int]]:
        folder = f"data/policy/{policy}"
        known[policy] = known.get(policy) or load_tokenizer(run.checkpoint(folder))
        return known[policy], end_tokens(folder, known[policy])

    for s, iteration in params.iterations.items():
        recorded = tables.read("responses", path := f"data/sample/{s}.parquet")
        tokenizer, ends = of(iteration.previous)
        source = tables.read("prompts", f"data/prompts/{s}.parquet")
        sampled = recorded[recorded["origin"] != "gold"]
        failures += different_column(path, recorded, text=_texts(recorded, tokenizer))
        failures += expected.endings(path, sampled, ends, params.sample.max_new_tokens, exact)
        failures += _prompts_of(path, recorded, source, tokenizer)
        gold = recorded[recorded["origin"] == "gold"]
        if params.sample.gold and len(gold):
            again, _ = gold_rows(source, sampled, tokenizer, turn_end(tokenizer, ends))
            failures += different_rows(path, gold, again, ["prompt_id", "token_ids", "finish_reason"])
        count += len(recorded)
    for benchmark, policy in run.evaluated:
        recorded = tables.read("outputs", path := f"data/generate/{policy}-{benchmark}.parquet")
        generate = params.benchmarks[benchmark].generate
        tokenizer, ends = of(policy)
        failures += different_column(path, recorded, text=_texts(recorded, tokenizer))
        failures += expected.endings(path, recorded, ends, generate.max_new_tokens, exact)
        failures += different_column(path, recorded, n_tokens=recorded["token_ids"].map(len))
        source = tables.read("items", f"data/items/{benchmark}.parquet")
        failures += _prompts_of(path, recorded[recorded["turn"] == 0], source, tokenizer)
        for turn in range(1, generate.refinements + 1):
            answers = recorded[(recorded["sample"] < 0) & (recorded["turn"] == turn - 1)].set_index("prompt_id")["text"]
            source = source[source["prompt_id"].isin(answers.index)]
            source = source.assign(messages=revised(source["messages"], answers.loc[source["prompt_id"]]))
            failures += _prompts_of(path, recorded[recorded["turn"] == turn], source, tokenizer)
        count += len(recorded)
    detail = f"{count} responses and outputs decoded again; their prompts' tokens and how they ended"
    return conclude(PART, name, count, detail, failures)


def _prompts_of(path: str, recorded: pd.DataFrame, source: pd.DataFrame, tokenizer: Any) -> list[str]:
    known = dict(zip(source["prompt_id"], render_prompts(tokenizer, source["messages"].tolist()), strict=True))
    unknown = [row for row, prompt in recorded["prompt_id"].items() if prompt not in known]
    if unknown:
        return [f"{path}, row {unknown[0]}: its prompt was never asked"]
    return [
        f"{path}, row {row}: prompt_token_ids are not those of its prompt"
        for row, ids, prompt in zip(recorded.index, recorded["prompt_token_ids"], recorded["prompt_id"], strict=True)
        if ids.tolist() != list(known[prompt])
    ]


def _texts(recorded: pd.DataFrame, tokenizer: Any) -> list[str]:
    return tokenizer.batch_decode([ids.tolist() for ids in recorded["token_ids"]], skip_special_tokens=True)
