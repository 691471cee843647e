"""Policies on disk: what a folder must hold to be one, and how a conversation becomes token ids."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.utils import logging as transformers_logging

from larpo.errors import UserError, one_line
from larpo.models.remote_code import CAUSAL_LM, TOKENIZER, references, trust

# Bars that redraw a line are noise in a log; nodes print lines of their own.
transformers_logging.disable_progress_bar()
# Whether code of a checkpoint may run is stated wherever one is loaded (larpo.models.remote_code). Where the library
# or such code loads a part without stating it, that is an error and no question at the terminal.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

# What the libraries raise for weights that are absent, cut short, of an unknown kind, or for a wrong option. Nothing
# narrower names them: a broken tokenizer.json raises a bare Exception, a wrong size in config.json a class of its own,
# a quantised checkpoint without its library an ImportError.
UNUSABLE = (Exception,)
# Weights that do not fit are left to `check_weights`, which names them.
WHOLE = {"output_loading_info": True, "ignore_mismatched_sizes": True}


def line(error: Exception) -> str:
    return one_line(error)[:160] or type(error).__name__


def dtype_of(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint, refused in one line when it is absent or has no chat template."""
    code = trust(folder, TOKENIZER)
    try:
        # A tokenizer without code is loaded without its model's, of whose kind transformers then warns.
        with errors_only() if references(folder) else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=code)
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
    """Causal language model of a checkpoint, whole and finite; safetensors only, and its own code only where that was
    admitted (larpo.models.remote_code). `options` (those of the engine) go to `from_pretrained`."""
    settings = options | {"dtype": dtype_of(dtype), "use_safetensors": True} | WHOLE
    settings |= {"trust_remote_code": trust(folder, CAUSAL_LM)}
    check_attention(folder, options.get("attn_implementation"))
    try:
        with errors_only():
            model, found = AutoModelForCausalLM.from_pretrained(str(folder), **settings)
    except UNUSABLE as error:
        asked = f" with engine.options {', '.join(options)}" if options else ""
        raise UserError(f"{folder}: no usable checkpoint{asked} ({line(error)})") from None
    check_weights(model, found, str(folder))
    return model


@contextmanager
def errors_only() -> Iterator[None]:
    """transformers tells what it found wrong with weights as a table of warnings; `check_weights` says it in a line."""
    spoken = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(spoken)


def check_attention(folder: str | Path, asked: object = None, where: str | None = None) -> None:
    """Refuse attention named by a hub id, in config.json or in `engine.options`: it would be fetched as code."""
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        asked = asked or json.loads((Path(folder) / "config.json").read_text("utf-8")).get("attn_implementation")
    if isinstance(asked, str) and "/" in asked:
        raise UserError(
            f"{where or folder}: attn_implementation {asked!r} is code of the hub, never run; expected sdpa or eager"
        )


def check_weights(model: PreTrainedModel, found: dict[str, Any], where: str) -> None:
    """Refuse weights that are not those of the configuration, or not finite.

    transformers makes up what a file lacks and leaves out what the configuration has no place for, with a warning only.
    `found` is the loading info of `from_pretrained`.
    """
    missing = sorted(found["missing_keys"])
    left_out = sorted(key for key in found["unexpected_keys"] if re.match(r"(model\.)?layers\.\d+\.", key))
    for keys, what in ((missing, "lacks"), (left_out, "has layers beyond config.json:")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{where}: the checkpoint {what} {keys[0]}{more}; expected the weights of its config.json")
    for key, stored, expected in sorted(found["mismatched_keys"]):
        raise UserError(
            f"{where}: the weight {key} has shape {tuple(stored)}, config.json expects {tuple(expected)}; expected the "
            "weights of its config.json"
        )
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes, those that get their weights from the first one have none yet
    for name, weight in model.named_parameters():
        if weight.device.type != "meta" and not torch.isfinite(weight).all():
            raise UserError(
                f"{where}: the weight {name} is not finite (NaN or infinite); expected an intact checkpoint"
            )


def check_tokens(model: PreTrainedModel, ids: Iterable[Sequence[int]], where: str) -> None:
    """Refuse token ids that the model has no embedding for; `where` is the file that they come from."""
    size = model.get_input_embeddings().weight.shape[0]
    for row in ids:
        if len(row) and not 0 <= min(row) <= max(row) < size:
            found = next(t for t in row if not 0 <= t < size)
            raise UserError(
                f"{where}: token id {found} is outside of the model's vocabulary, 0 to {size - 1}; is the tokenizer "
                "another model's?"
            )


def end_tokens(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a response: the tokenizer's end token first, then those that the checkpoint's
    generation_config.json adds (an instruct Gemma ends its turns with `<end_of_turn>`, not with `<eos>`)."""
    named = None
    try:
        if (Path(folder) / "generation_config.json").exists():
            named = GenerationConfig.from_pretrained(str(folder)).eos_token_id
    except UNUSABLE as error:
        raise UserError(f"{folder}/generation_config.json: not usable ({line(error)})") from None
    return ends_of(tokenizer, named)


def ends_of(tokenizer: PreTrainedTokenizerBase, named: int | list[int] | None) -> list[int]:
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(e for e in named if e is not None)]))


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
            f"{where}: the chat template refuses a conversation of {roles} ({line(error)}); leave out prompts.system, "
            "use prompts whose turns alternate, or mend chat_template.jinja"
        ) from None
