"""The prompt set D_X: where prompts come from, and which of them are never trained on.

A prompt belongs to the held-out part by a hash of its own text, not by a random draw: training and
evaluation prompts are disjoint whatever the seeds, the iteration or the number of prompts.
"""

import re
import reprlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pandas as pd

from larpo.config.sections import SourceParams
from larpo.errors import ParameterError, UserError, at, nearest, unknown
from larpo.hashing import digest, seed_of, unit_interval
from larpo.registry import Registry
from larpo.sources.careless_sums import sums
from larpo.sources.rows import as_written, read_shuffled

Messages = list[dict[str, str]]
Prompt = tuple[str, Messages, str | None, str | None]
"""(source, messages, reference answer or None, a whole reference response or None)"""

SOURCES = Registry(
    "prompt source",
    {
        "reasoning_gym": "larpo.sources.prompts:reasoning_gym_prompts",
        "sums": "larpo.sources.prompts:sum_prompts",
        "dataset": "larpo.sources.prompts:dataset_prompts",
    },
)
"""name → function (SourceParams, seed) → endless or finite iterator of prompts in a reproducible order."""

STALE = 8192
"""Draws in a row without a new prompt, and 16 more for each prompt found, after which a source has no other."""


def reasoning_gym_prompts(params: SourceParams, seed: int) -> Iterator[Prompt]:
    """Generated problems with exact answers, in equal parts from each generator of `params.tasks`."""
    with warnings.catch_warnings():
        # A package below it warns of its own code when Python compiles it.
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    if not params.tasks:
        raise ParameterError("tasks", "expected at least one reasoning-gym generator, found none")
    chunk = 4096  # a generator's dataset has a fixed size; a new seed continues the stream
    for round_ in range(1_000_000):
        datasets = []
        for task in params.tasks:
            if task.name not in DATASETS:
                raise unknown("tasks", task.name, list(DATASETS))
            try:
                datasets.append(
                    reasoning_gym.create_dataset(
                        task.name, seed=seed_of(seed, task.name, round_), size=chunk, **task.config
                    )
                )
            except (TypeError, AssertionError, ValueError) as error:
                raise ParameterError("tasks", f"{task.name}: {error}") from None
        for i in range(chunk):
            for task, dataset in zip(params.tasks, datasets, strict=True):
                item, field = dataset[i], task.question_field
                if field and not isinstance(item["metadata"].get(field), str):
                    texts = [key for key, value in item["metadata"].items() if isinstance(value, str)]
                    raise ParameterError("tasks", f"{task.name} has no text {field!r} to ask{nearest(field, texts)}")
                question = item["metadata"][field] if field else item["question"]
                yield f"reasoning_gym/{task.name}", conversation(params, question), item["answer"], item["answer"]


def sum_prompts(params: SourceParams, seed: int) -> Iterator[Prompt]:
    """Sums with right answers and worked examples that are often careless (larpo.sources.careless_sums)."""
    for text, answer, worked in sums(params.sums.digits, params.sums.careless, seed, params.sums.carry):
        yield "sums", conversation(params, text), answer, worked


def dataset_prompts(params: SourceParams, seed: int) -> Iterator[Prompt]:
    """A hub dataset by its id, a folder, or a .json, .jsonl, .csv, .tsv or .parquet file, shuffled by `seed`."""
    if not params.dataset:
        raise ParameterError("dataset", "expected a hub id or a file's path, found nothing")
    columns = [c for c in (params.prompt_field, params.answer_field, params.solution_field) if c]
    what = "rows with the columns that prompt_field, answer_field and solution_field name"
    with at("dataset"):
        for where, row in read_shuffled(params.dataset, what, seed, columns, params.split):
            answer, solution = (
                None if key is None else as_written(row.get(key), key, where)
                for key in (params.answer_field, params.solution_field)
            )
            messages = conversation(params, row.get(params.prompt_field), where)
            yield params.dataset, messages, _inside(params, answer, where), solution


def _inside(params: SourceParams, answer: str | None, where: str) -> str | None:
    """The part of an answer that `answer_pattern` names; the whole without one."""
    if params.answer_pattern is None or answer is None:
        return answer
    match = re.search(params.answer_pattern, answer)
    if match is None or match[1] is None:
        raise UserError(
            f"{where}: answer {reprlib.repr(answer)} does not match prompts.answer_pattern {params.answer_pattern!r}; "
            "expected a match in every row"
        )
    return match[1].strip()


def conversation(params: SourceParams, prompt: Any, where: str = "") -> list[dict[str, str]]:
    """A prompt, text or chat messages, as messages after the section's system message; one of the row's own wins."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        messages = [{"role": m["role"], "content": m["content"]} for m in messages]
        usable = all(isinstance(text, str) for m in messages for text in m.values()) and messages[-1]["content"].strip()
        usable = usable and messages[-1]["role"] not in ("assistant", "system")
    except (TypeError, KeyError, IndexError):
        usable = False
    if not usable:
        raise UserError(
            f"{where or params.source}: prompt {reprlib.repr(prompt)} is neither text nor chat messages with "
            "a role and a content each, the last to be answered; drop such rows, or set prompts.prompt_field"
        )
    own = messages[0]["role"] == "system"
    return ([{"role": "system", "content": params.system}] if params.system and not own else []) + messages


def prompt_id(source_name: str, messages: list[dict[str, str]]) -> str:
    """Identity of a prompt: a hash of its source and its messages."""
    return digest("prompt", source_name, [[m["role"], m["content"]] for m in messages])


def is_held_out(params: SourceParams, messages: list[dict[str, str]]) -> bool:
    """Whether a prompt belongs to the held-out part of its source."""
    return in_share(params.held_out, messages)


def in_share(share: float, messages: list[dict[str, str]]) -> bool:
    """Whether a prompt is among that share of all: a hash of its last message, normalised in case and white space, so
    that neither a new system message nor a new seed moves a prompt across."""
    text = " ".join(messages[-1]["content"].lower().split())
    return unit_interval("split", text) < share


def draw(
    params: SourceParams,
    count: int | None,
    seed: int,
    held_out: bool,
    section: str = "prompts",
    refuse: Callable[[Messages], str | None] = lambda _: None,
    refused: Counter[str] | None = None,
    asked: str = "prompts.per_iteration",
    seconds: float | None = None,
) -> pd.DataFrame:
    """Draw `count` different prompts of one part, a `prompts` table in the source's order.

    `count` None takes all of a dataset; a generator has no end, so it needs a number. `section` of params.yaml and the
    key `asked` of the number are what errors name. A prompt for which `refuse` gives a reason is left out and counted
    in `refused`; so is, as `other_answer`, one that comes again with another answer or solution: the first counts.

    Raises
    ------
    UserError
        The source cannot be read, or has fewer different prompts in that part.
    TimeoutError
        `seconds` of computing have brought no answer; they begin with the first prompt, when all is loaded.
    """
    seen: dict[str, tuple] = {}
    out: dict[str, str] = {}
    again = stale = 0
    until = None
    # A small generator repeats itself; give up when it stops yielding new prompts. Of n equally likely ones the last
    # is missing from 16 n draws in one case of nine million.
    limit = None if count is None else 64 * count + 65_536
    with at(section, "params.yaml"):
        source = SOURCES.load(params.source, "source")
        for source_name, messages, answer, solution in islice(source(params, seed), limit):
            if seconds is not None:
                until = until or time.process_time() + seconds
                if time.process_time() > until:
                    raise TimeoutError
            if is_held_out(params, messages) != held_out:
                continue
            key = prompt_id(source_name, messages)
            if key in seen or key in out:
                again += key in seen and seen[key][2:] != (answer, solution)
                stale += 1
                if count is not None and stale > STALE + 16 * (len(seen) + len(out)):
                    break
                continue
            stale = 0
            if reason := refuse(messages):
                out[key] = reason
                continue
            seen[key] = (source_name, messages, answer, solution)
            if len(seen) == count:
                break
        counts = Counter(out.values())
        if refused is not None:
            dropped = {"other_answer": again} if again else {}
            refused.update(counts, **dropped)
        if not seen or (count is not None and len(seen) < count):
            raise _too_few(params, len(seen), count, held_out, counts, asked)
    rows = [(key, *value) for key, value in seen.items()]
    return pd.DataFrame(rows, columns=["prompt_id", "source", "messages", "answer", "solution"])


def _too_few(
    params: SourceParams, found: int, count: int | None, held_out: bool, refused: Counter[str], asked: str
) -> ParameterError:
    """The error for a source that has fewer prompts than asked for: both keys, and the number that would do."""
    if params.source == "dataset":
        key, widen = "dataset", "more rows"
    else:
        key, widen = ("tasks", "wider tasks") if params.source == "reasoning_gym" else ("source", "another source")
    share = f"in the held-out share {params.held_out:g}" if held_out else f"outside of held_out {params.held_out:g}"
    less = f"at most {found} there, or " if found else ""
    return ParameterError(
        key,
        f"{getattr(params, key) if key != 'tasks' else 'the generators'}: {found} different prompts {share}"
        + "".join(f" and {n} more that hold a {reason}" for reason, n in refused.items())
        + f", {'some' if count is None else count} asked for by {asked}; expected {less}{widen}",
    )
