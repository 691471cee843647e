"""Reward models on disk: where one comes from, what its folder holds, and its identity.

    data/reward/   reward.json, and for a model: config.json, *.safetensors, the tokenizer's files

Weights are safetensors, never a pickle. Code that a checkpoint brings is run where `reward.trust_remote_code` says so,
that of a policy which got a head where `policy.trust_remote_code` does; it then lies in that folder too.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from larpo.config.reward import RewardParams
from larpo.errors import UserError, at
from larpo.hashing import digest, tree_hash
from larpo.models.chat import apply_template
from larpo.models.load import open_tokenizer, open_weights
from larpo.models.remote_code import CLASSIFIER, TOKENIZER, admit, files_of, hashes_of, references
from larpo.models.resolve import Checkpoint, Model, of, resolve

IDENTITY = "reward.json"


def reward_checkpoint(params: RewardParams, start: Checkpoint | None, within: Path | None = None) -> Checkpoint:
    """Where the model comes from: `start`, a policy of the run that its node admitted, or `reward.model`, whose own
    code, if it brings some, is admitted as `reward.trust_remote_code` says."""
    if start is not None:
        checkpoint = replace(start, facts={"origin": "policy"})
    else:
        with at("reward.model", "params.yaml"):
            checkpoint = resolve(params.model, params.revision)
        if params.kind == "pairrm":
            return checkpoint  # none of its code is ever run
        permission = "reward.trust_remote_code", params.trust_remote_code
        classes = CLASSIFIER + TOKENIZER
        checkpoint = admit(checkpoint, *permission, where=where(params), classes=classes, native=True, within=within)
    brought = dict(references(checkpoint))
    if "AutoModelForCausalLM" in brought and "AutoModelForSequenceClassification" not in brought:
        raise UserError(
            f"{where(params)}: its code has no AutoModelForSequenceClassification in auto_map, so a head would stand "
            "on another model; expected a checkpoint whose code has one, or none of its own"
        )
    return checkpoint


def where(params: RewardParams) -> str:
    """How errors name the model."""
    return f"params.yaml: reward.{'model' if params.policy is None else 'start'}: {params.source!r}"


def check_template(params: RewardParams, checkpoint: Checkpoint, prompts: Iterable[list[dict[str, str]]]) -> None:
    """Refuse a model whose chat template refuses one of these prompts with a response, one of each order of roles: told
    before its weights are loaded and anything is sampled for it."""
    if params.kind == "pairrm":
        return
    tokenizer = open_tokenizer(checkpoint, where(params))
    for messages in {tuple(m["role"] for m in prompt): prompt for prompt in prompts}.values():
        if tokenizer.chat_template:
            apply_template(tokenizer, [*messages, {"role": "assistant", "content": "y"}], where(params))


def fetch_classifier(
    params: RewardParams, checkpoint: Checkpoint, dtype: str, new_head: bool
) -> tuple[PreTrainedModel, Tokenizer, dict[str, Any]]:
    """Model with one logit, tokenizer and facts.

    A checkpoint without a trained head is refused unless `new_head`: transformers would give it a random one, and its
    scores would be noise that nobody notices.
    """
    name = where(params)
    tokenizer = open_tokenizer(checkpoint, name)
    # A trained head keeps its own number of labels, so that one with several is refused, not cut down.
    labels = {"num_labels": 1} if new_head else {}
    model, info = open_weights(AutoModelForSequenceClassification, checkpoint, dtype, CLASSIFIER, name, **labels)
    if info["missing_keys"] and not new_head:
        raise UserError(
            f"{name} has no {', '.join(sorted(info['missing_keys']))}; expected "
            "a trained reward model with its head: name another, or train one by reward.train"
        )
    if model.config.num_labels != 1:
        raise UserError(f"{name} has {model.config.num_labels} logits; expected one")
    if hasattr(model, "score") and not tokenizer.chat_template:
        raise UserError(
            f"{name} is a decoder without a chat template, so nobody knows how it "
            "reads a conversation; add the chat_template.jinja that it was trained with to its folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_length(model, params.max_length)
    return model, tokenizer, facts_of(model, checkpoint)


def facts_of(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, Any]:
    """Identity of a fetched model; the commit is that of the files."""
    revision = getattr(model.config, "_commit_hash", None) or checkpoint.facts.get("revision")
    return {"parameters": model.num_parameters(), **checkpoint.facts, "revision": revision}


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


def load_classifier(model: Model, dtype: str) -> tuple[PreTrainedModel, Tokenizer]:
    """The reward model of the node `reward`."""
    checkpoint, name = of(model), f"{model}, which `dvc repro reward` makes"
    loaded, _ = open_weights(AutoModelForSequenceClassification, checkpoint, dtype, CLASSIFIER, name)
    return loaded, open_tokenizer(checkpoint, name)


def write_identity(folder: Path, params: RewardParams, tokenizer: Tokenizer | None, **facts: Any) -> dict[str, Any]:
    """Write reward.json: what `score@s` depends on, and the manifests quote."""
    identity = identity_of(folder, params, tokenizer, **facts)
    (folder / IDENTITY).write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return identity


def identity_of(folder: Path, params: RewardParams, tokenizer: Tokenizer | None, **facts: Any) -> dict[str, Any]:
    if params.source is None:
        return {"kind": "rules"}
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
    code = files_of(folder)
    return identity | ({"code": hashes_of(code)} if code else {})


def read_identity(folder: Model, kind: str) -> dict[str, Any]:
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
