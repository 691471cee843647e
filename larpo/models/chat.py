"""Conversations as token ids: what a chat template makes of them, what ends a response, a solution as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import GenerationConfig, PreTrainedTokenizerBase

from larpo.errors import UserError, one_line
from larpo.models.resolve import Model


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
    sandbox, where it reaches nothing but the messages, and whatever it raises is one line that names `where`."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        turns = messages if messages and isinstance(messages[0], dict) else (messages or [[]])[0]
        roles = ", ".join(m["role"] for m in turns)
        raise UserError(
            f"{where}: the chat template refuses a conversation of {roles} ({one_line(error)[:160]}); leave out "
            "prompts.system, use prompts whose turns alternate, or mend chat_template.jinja"
        ) from None


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
