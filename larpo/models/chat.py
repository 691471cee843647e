"""Conversations as token ids: what a chat template makes of them, what ends a response, a solution as one."""

import datetime
import re
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes
import numpy as np
import pandas as pd
from transformers import GenerationConfig, PreTrainedTokenizerBase

from larpo.config.policy import PolicyParams
from larpo.errors import ParameterError, UserError, at, nearest, one_line
from larpo.models.resolve import Model

DAY = "2024-07-26"
"""The day that templates write where nothing names another: Llama-3.2's own, where it is told none. Today's would make
a run of two days mix prompts, and no two runs the same."""
GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
RECORD = "larpo_chat_template"
"""Key of tokenizer_config.json: what a policy's template is given besides the messages, `{kwargs, date}`. The tokenizer
carries it to every checkpoint that is trained from it, and so to every node that makes prompts of messages."""


def render_prompts(tokenizer: PreTrainedTokenizerBase, messages: list[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of each conversation, up to where the assistant begins. The template's own special tokens
    are the only ones: nothing is added a second time."""
    texts = apply_template(tokenizer, messages, tokenizer.name_or_path, add_generation_prompt=True)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if not all(ids):
        raise UserError(f"{tokenizer.name_or_path}: the chat template makes no text of a prompt; expected its messages")
    return ids


def apply_template(tokenizer: PreTrainedTokenizerBase, messages: list, where: str, **options: Any) -> Any:
    """A conversation, or a list of them, as text. A template is a program of the checkpoint's: it runs in jinja2's
    sandbox, where it reaches nothing but the messages and what `record_choices` recorded, and whatever it raises is one
    line that names `where`."""
    try:
        chosen = tokenizer.init_kwargs.get(RECORD) or {}
        options |= chosen.get("kwargs", {})
        if "strftime_now" in str(tokenizer.chat_template):
            day = datetime.datetime.fromisoformat(chosen.get("date") or DAY)
            options["strftime_now"] = day.strftime  # goes before transformers' own, which asks the clock
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        turns = messages if messages and isinstance(messages[0], dict) else (messages or [[]])[0]
        roles = ", ".join(m["role"] for m in turns)
        raise UserError(
            f"{where}: the chat template refuses a conversation of {roles} ({one_line(error)[:160]}); leave out "
            "prompts.system, use prompts whose turns alternate, or mend chat_template.jinja"
        ) from None


def record_choices(tokenizer: PreTrainedTokenizerBase, params: PolicyParams) -> dict[str, Any]:
    """Put `policy.chat_template_kwargs` and the day into the tokenizer, to be saved with it.

    Returns
    -------
    What was recorded, for the manifest: `kwargs`, and `date` where the template writes one; {} where nothing was.

    Raises
    ------
    ParameterError
        The template has no variable of that name, or writes no date: what was asked would change nothing.
    """
    names = template_names(tokenizer)
    kwargs = dict(params.chat_template_kwargs)
    with at("policy"):
        for name in kwargs:
            if name not in names:
                known = nearest(name, names - {"messages", "add_generation_prompt"})
                raise ParameterError(f"chat_template_kwargs.{name}", f"the chat template never reads it{known}")
        if params.date is not None and not names & {"strftime_now", "date_string"}:
            raise ParameterError("date", "the chat template writes no date (strftime_now, date_string); leave it null")
    if params.date is not None and "date_string" in names:
        kwargs.setdefault("date_string", datetime.date.fromisoformat(params.date).strftime("%d %b %Y"))
    record: dict[str, Any] = {"kwargs": kwargs} if kwargs else {}
    if "strftime_now" in names:
        record["date"] = params.date or DAY
    tokenizer.init_kwargs.pop(RECORD, None)
    if record:
        tokenizer.init_kwargs[RECORD] = record
    return record


def template_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Variables that a chat template reads; none of one that is no jinja, which `apply_template` tells."""
    text = GENERATION.sub("", tokenizer.get_chat_template())  # a tag of transformers', around an assistant's words
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except jinja2.TemplateError:
        return set()
    return {name.name for name in tree.find_all(jinja2.nodes.Name) if name.ctx == "load"}


def end_tokens(folder: Model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a response: the tokenizer's end token first, then those that the checkpoint's
    generation_config.json adds (an instruct Gemma ends its turns with `<end_of_turn>`, not with `<eos>`)."""
    named = None
    try:
        if (Path(folder) / "generation_config.json").exists():
            named = GenerationConfig.from_pretrained(str(folder)).eos_token_id
    except Exception as error:  # noqa: BLE001 - as for every part of a checkpoint (larpo.models.load)
        raise UserError(f"{folder}/generation_config.json: not usable ({one_line(error)[:160]})") from None
    return ends_of(tokenizer, named)


def ends_of(tokenizer: PreTrainedTokenizerBase, named: int | list[int] | None) -> list[int]:
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(e for e in named if e is not None)]))


def turn_end(tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> int:
    """Token id that the chat template puts behind an assistant's turn: one of `ends`, the first that follows the
    content; the first of them all where the template writes none."""
    content = "solution"
    messages = [{"role": "user", "content": "problem"}, {"role": "assistant", "content": content}]
    text = apply_template(tokenizer, messages, tokenizer.name_or_path)
    tail = tokenizer(text[text.rindex(content) + len(content) :], add_special_tokens=False)["input_ids"]
    return next((token for token in tail if token in ends), ends[0])


def gold_token_ids(tokenizer: PreTrainedTokenizerBase, solutions: list[str], end: int) -> list[list[int] | None]:
    """Each solution's tokens and the end token; None where the tokenizer has no tokens for a part of it."""
    unknown = tokenizer.unk_token_id
    # A tokenizer over bytes has no unknown token, or gives it another meaning: then it is the end token itself.
    unknown = None if unknown in (tokenizer.eos_token_id, end) else unknown
    encoded = tokenizer(solutions, add_special_tokens=False)["input_ids"]
    return [None if unknown is not None and unknown in ids else [*ids, end] for ids in encoded]


def gold_rows(
    prompts: pd.DataFrame, sampled: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, end: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """One row per prompt that has a solution, behind the prompt's tokens as sampled, and why others have none."""
    has = prompts["solution"].fillna("").str.strip() != ""
    rows = prompts.loc[has, ["prompt_id", "solution"]].reset_index(drop=True)
    ids = gold_token_ids(tokenizer, rows["solution"].tolist(), end) if len(rows) else []
    known = np.array([i is not None for i in ids], dtype=bool)
    rows, ids = rows[known], [i for i in ids if i is not None]
    first = sampled.drop_duplicates("prompt_id").set_index("prompt_id")["prompt_token_ids"]
    rows = pd.DataFrame(
        {
            "prompt_id": rows["prompt_id"].tolist(),
            "temperature": np.nan,
            "seed": np.nan,
            "text": [tokenizer.decode(i, skip_special_tokens=True) for i in ids],
            "prompt_token_ids": [first[p] for p in rows["prompt_id"]],
            "token_ids": ids,
            "finish_reason": "stop",
            "origin": "gold",
        }
    )
    dropped = {"without_solution": int((~has).sum()), "unknown_tokens": int((~known).sum())}
    return rows, {reason: count for reason, count in dropped.items() if count}
