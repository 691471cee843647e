"""Checkpoints opened: tokenizer and weights, whole, finite, and without code that nobody let run."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.utils import logging as transformers_logging

from larpo.errors import UserError, one_line
from larpo.models.remote_code import CAUSAL_LM, TOKENIZER, config_of, references, trust
from larpo.models.resolve import Checkpoint, Model, of

# Bars that redraw a line are noise in a log; nodes print lines of their own.
transformers_logging.disable_progress_bar()
# Whether code of a checkpoint may run is stated wherever one is loaded (larpo.models.remote_code). Where the library
# or such code loads a part without stating it, that is an error and no question at the terminal.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

# What the libraries raise for weights that are absent, cut short, of an unknown kind, or for a wrong option. Nothing
# narrower names them: a broken tokenizer.json raises a bare Exception, a wrong size in config.json a class of its own,
# a quantised checkpoint without its library an ImportError.
UNUSABLE = (Exception,)


def dtype_of(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_tokenizer(model: Model, where: str | None = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint, refused in one line, which begins with `where`, when it is absent or has no chat
    template."""
    checkpoint, where = of(model), where or str(model)
    tokenizer = open_tokenizer(checkpoint, where)
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{where}: the tokenizer has no chat template; expected chat_template.jinja (an instruct model's "
            "checkpoint has one)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"{where}: the tokenizer names no end-of-sequence token; set eos_token")
    return tokenizer


def load_model(model: Model, dtype: str, where: str | None = None, /, **options: Any) -> PreTrainedModel:
    """Causal language model of a checkpoint, whole and finite. `options` (those of the engine) go to `from_pretrained`;
    errors begin with `where`."""
    checkpoint, where = of(model), where or str(model)
    loaded, info = open_weights(AutoModelForCausalLM, checkpoint, dtype, CAUSAL_LM, where, **options)
    check_weights(loaded, info, where)
    return loaded


def open_tokenizer(checkpoint: Checkpoint, where: str) -> PreTrainedTokenizerBase:
    """Tokenizer of any checkpoint, as it is."""
    code = trust(checkpoint, TOKENIZER)
    try:
        # A tokenizer without code is loaded without its model's, of whose kind transformers then warns.
        with errors_only() if references(checkpoint) else nullcontext():
            return AutoTokenizer.from_pretrained(checkpoint.source, **checkpoint.options, trust_remote_code=code)
    except UNUSABLE as error:
        raise UserError(
            f"{where}: no usable tokenizer ({one_line(error)[:160]}); expected tokenizer.json and "
            "tokenizer_config.json beside the weights"
        ) from None


def open_weights(
    auto: Any, checkpoint: Checkpoint, dtype: str, classes: Sequence[str], where: str, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Model of any class of transformers and what was found wrong with its weights, by the library's own names.

    Safetensors only, or the GGUF that the checkpoint names; the checkpoint's own code only where it was admitted for
    `classes` (larpo.models.remote_code).
    """
    check_attention(checkpoint, options.get("attn_implementation"), where)
    gguf = "gguf_file" in checkpoint.options
    settings = {"quantization_config": GgufConfig(dequantize=True)} if gguf else {"use_safetensors": True}
    settings |= checkpoint.options | {"dtype": dtype_of(dtype), "trust_remote_code": trust(checkpoint, classes)}
    try:
        with errors_only():
            model, info = auto.from_pretrained(
                checkpoint.source, **options | settings, output_loading_info=True, ignore_mismatched_sizes=True
            )
            capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
            if capped and "attn_implementation" not in options:
                model.set_attn_implementation("eager")  # the library's default, SDPA, leaves the cap out
            return model, info
    except UNUSABLE as error:
        if pickled(checkpoint):
            raise UserError(
                f"{where}: has its weights as a pickle (.bin), which could run code; expected .safetensors: take a "
                "revision that has them, or load it where you trust it and `save_pretrained` it"
            ) from None
        given = f" with engine.options {', '.join(options)}" if options else ""
        raise UserError(f"{where}: no usable checkpoint{given} ({one_line(error)[:160]})") from None


def pickled(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's weights are there as a pickle alone."""
    names: list[str] = []
    with suppress(Exception):  # what cannot be listed is not known to be one
        here = Path(checkpoint)
        names = (
            [p.name for p in here.iterdir()]
            if here.is_dir()
            else list_repo_files(str(checkpoint), **checkpoint.options)
        )
    suffixes = {Path(name).suffix for name in names}
    return ".bin" in suffixes and ".safetensors" not in suffixes


@contextmanager
def errors_only() -> Iterator[None]:
    """transformers tells what it found wrong with weights as a table of warnings; `check_weights` says it in a line."""
    spoken = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(spoken)


def check_attention(checkpoint: Checkpoint, named: object, where: str) -> None:
    """Refuse attention named by a hub id, in config.json or in `engine.options`: it would be fetched as code."""
    named = named or config_of(checkpoint).get("attn_implementation")
    if isinstance(named, str) and "/" in named:
        raise UserError(f"{where}: attn_implementation {named!r} is code of the hub, never run; expected sdpa or eager")


def check_weights(model: PreTrainedModel, info: dict[str, Any], where: str) -> None:
    """Refuse weights that are not those of the configuration, or not finite.

    transformers makes up what a file lacks and leaves out what the configuration has no place for, with a warning only.
    `info` is the loading info of `from_pretrained`.
    """
    missing = sorted(info["missing_keys"])
    left_out = sorted(key for key in info["unexpected_keys"] if re.match(r"(model\.)?layers\.\d+\.", key))
    for keys, what in ((missing, "lacks"), (left_out, "has layers beyond config.json:")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{where}: the checkpoint {what} {keys[0]}{more}; expected the weights of its config.json")
    for key, stored, expected in sorted(info["mismatched_keys"]):
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


def positions_of(model: Model, turned_once: bool = False) -> int | None:
    """Tokens that a checkpoint can read in a row, by its config.json; None where it names no end. With `turned_once`
    those up to which its rotary angles stay: where Phi-3's change, neither keys in a cache nor rows beside follow."""
    config = config_of(of(model))
    text = config.get("text_config")
    for section in (text if isinstance(text, dict) else {}, config):
        found = section.get("rope_scaling") or section.get("rope_parameters")
        rope = found if turned_once and isinstance(found, dict) else {}
        turns = rope.get("rope_type", rope.get("type")) in ("longrope", "su", "dynamic")
        first = "original_max_position_embeddings"
        limits = [rope.get(first), section.get(first)] if turns else []
        limits += [section.get(name) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
        if limit := next((n for n in limits if isinstance(n, int) and n > 0), None):
            return limit
    return None


def check_tokens(model: PreTrainedModel, ids: Iterable[Sequence[int]], where: str) -> None:
    """Refuse token ids that the model has no embedding for; `where` is the file that they come from."""
    size = model.get_input_embeddings().weight.shape[0]
    for row in ids:
        if len(row) and not 0 <= min(row) <= max(row) < size:
            outside = next(t for t in row if not 0 <= t < size)
            raise UserError(
                f"{where}: token id {outside} is outside of the model's vocabulary, 0 to {size - 1}; is the tokenizer "
                "another model's?"
            )
