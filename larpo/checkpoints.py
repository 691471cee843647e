"""Policies on disk: what a folder must hold to be one, and how a conversation becomes token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from larpo.errors import UserError

# Bars that redraw a line are noise in a log; nodes print lines of their own.
transformers_logging.disable_progress_bar()

# What the libraries raise for weights that are absent, cut short, of an unknown kind, or for a wrong option.
UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


def line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def dtype_of(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint, refused in one line when it is absent or has no chat template."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except UNUSABLE as error:
        raise UserError(
            f"{folder}: no usable tokenizer ({line(error)}); "
            "expected tokenizer.json and tokenizer_config.json beside the weights"
        ) from None
    check_tokenizer(tokenizer, str(folder))
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{where}: the tokenizer has no chat template; expected chat_template.jinja (an instruct model's "
            "checkpoint has one)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"{where}: the tokenizer names no end-of-sequence token; set eos_token")


def load_model(folder: str | Path, dtype: str, /, **options: Any) -> PreTrainedModel:
    """Causal language model of a checkpoint; safetensors only, no remote code. `options` go to
    `from_pretrained` and win."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), **({"dtype": dtype_of(dtype), "use_safetensors": True} | options)
        )
    except UNUSABLE as error:
        raise UserError(f"{folder}: no usable checkpoint ({line(error)})") from None
    return model


def end_tokens(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a response: the tokenizer's end token first, then those that the checkpoint's
    generation_config.json adds (an instruct Gemma ends its turns with `<end_of_turn>`, not with `<eos>`)."""
    try:
        named = GenerationConfig.from_pretrained(str(folder)).eos_token_id
    except OSError:  # no such file
        named = None
    return ends_of(tokenizer, named)


def ends_of(tokenizer: PreTrainedTokenizerBase, named: int | list[int] | None) -> list[int]:
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(e for e in named if e is not None)]))


def render_prompts(tokenizer: PreTrainedTokenizerBase, messages: list[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of each conversation, up to where the assistant begins. The template's own special tokens
    are the only ones: nothing is added a second time."""
    texts = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
