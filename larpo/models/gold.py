"""Gold responses: a prompt's own solution as the policy would have written it, in token ids."""

from __future__ import annotations

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from larpo.models.load import apply_template


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
