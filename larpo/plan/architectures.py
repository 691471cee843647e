"""Architectures: what a model's sizes are, without its weights and without a network."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from larpo.errors import UserError
from larpo.models import remote_code
from larpo.models.resolve import Checkpoint, resolve

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a transformer. `parameters` is its count; `counted()` computes it from the other fields."""

    name: str
    kind: Literal["decoder", "encoder"]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_context: int
    parameters: int
    dtype: str = "bfloat16"
    tied: bool = False
    head: Literal["lm", "score", "none"] = "lm"
    norms_per_layer: int = 2
    softcap: bool = False
    positions: int = 0
    relative_positions: int = 0
    pooler: bool = False
    model_type: str = ""

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Of one layer: q and o, k and v, the MLP, the norms (and an encoder's biases)."""
        q_and_o = 2 * self.hidden * self.heads * self.head_dim
        k_and_v = 2 * self.hidden * self.kv_heads * self.head_dim
        if self.kind == "decoder":
            return q_and_o + k_and_v + 3 * self.hidden * self.intermediate + self.norms_per_layer * self.hidden
        biases = 4 * self.hidden + self.intermediate + self.hidden
        return q_and_o + k_and_v + 2 * self.hidden * self.intermediate + biases + 2 * 2 * self.hidden

    def counted(self) -> int:
        """Parameters by formula: embeddings, layers, final norm, head."""
        total = self.embedding_parameters + self.layers * self.layer_parameters
        if self.kind == "decoder":
            head = {"lm": 0 if self.tied else self.embedding_parameters, "score": self.hidden, "none": 0}[self.head]
            return total + self.hidden + head
        total += self.positions * self.hidden + 2 * self.hidden  # learned positions, the embeddings' norm
        if self.relative_positions:
            total += self.relative_positions * self.hidden + 2 * self.hidden
        return total + (self.hidden * self.hidden + self.hidden if self.pooler else 0)

    def kv_bytes_per_token(self, dtype: str, shards: int = 1) -> int:
        """2 (keys, values) · layers · kv heads on one of `shards` GPUs · head dim · bytes; a head is never split."""
        return 2 * self.layers * -(-self.kv_heads // shards) * self.head_dim * BYTES[dtype]

    def adafactor_state(self) -> int:
        """Numbers that Adafactor keeps: a row and a column per matrix, everything for a vector."""
        h, i, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 2 * (h + q) + 2 * (h + kv) + 3 * (h + i) + self.norms_per_layer * h
        matrices = 1 if self.tied or self.head != "lm" else 2
        return self.layers * layer + matrices * (self.vocab + h) + h


@cache
def known_models() -> dict[str, Architecture]:
    """The paper's models by hub id."""
    raw = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text("utf-8"))["models"]
    return {name: Architecture(name=name, **fields) for name, fields in raw.items()}


def find_architecture(model: str, code: tuple[str, bool] | None = None) -> Architecture:
    """Architecture of a hub id in models.yaml, of a folder with a config.json, or of a package's GGUF (`pypi:NAME`).

    A plan runs no code of a model: its sizes are those of its config.json, its parameters counted by formula.

    Parameters
    ----------
    code
        The key of params.yaml that lets the model's own code run, and its value; None: no key does.

    Raises
    ------
    UserError
        None of these, or the model brings code that a run would refuse; the message says what to give instead.
    """
    if model in known_models():
        return known_models()[model]
    if model.startswith("pypi:"):
        return _read(model, resolve(model))
    if (Path(model) / "config.json").is_file():
        if code is not None:
            remote_code.admit(model, *code, native=True)
        elif remote_code.needs_code(model):
            raise UserError(f"{model}: brings custom code, which is never run here; name another model")
        return _read(model, Checkpoint(model))
    raise UserError(
        f"{model}: unknown architecture: give a folder with its config.json, or add it to larpo/plan/models.yaml; "
        f"known are {', '.join(known_models())}"
    )


def scratch_architecture(section: Any) -> Architecture:
    """The small Llama of `policy.architecture` (larpo/models/blank.py): its MLP is four times as wide."""
    from larpo.models.blank import SPECIALS

    arch = Architecture(
        "scratch",
        "decoder",
        section.layers,
        section.hidden_size,
        4 * section.hidden_size,
        section.heads,
        section.heads,
        section.hidden_size // section.heads,
        len(SPECIALS) + len(set(section.characters)),
        section.max_length,
        0,
        dtype="float32",
        tied=True,
        model_type="llama",
    )
    return replace(arch, parameters=arch.counted())


@cache
def _read_config(source: str, options: tuple) -> tuple[Any, int]:
    """(configuration, exact number of parameters): the model is built on the meta device, where nothing has memory.
    Of a model that needs its own code 0 parameters, for it is not built."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedConfig,
    )

    if remote_code.needs_code(Checkpoint(source, dict(options))):
        return PreTrainedConfig.from_dict(PreTrainedConfig.get_config_dict(source, **dict(options))[0]), 0
    config = AutoConfig.from_pretrained(source, **dict(options), trust_remote_code=False)
    name = (getattr(config, "architectures", None) or [""])[0]
    builder = AutoModelForCausalLM
    if "SequenceClassification" in name:
        builder = AutoModelForSequenceClassification
    elif type(config) not in AutoModelForCausalLM._model_mapping or not getattr(config, "num_key_value_heads", None):
        builder = AutoModel
    with torch.device("meta"):
        return config, builder.from_config(config, trust_remote_code=False).num_parameters()


def _read(name: str, checkpoint: Checkpoint) -> Architecture:
    try:
        config, parameters = _read_config(checkpoint.source, tuple(checkpoint.options.items()))
        heads, hidden = config.num_attention_heads, config.hidden_size
        decoder = getattr(config, "num_key_value_heads", None) is not None
        architecture = (getattr(config, "architectures", None) or [""])[0]
        found = Architecture(
            name=name,
            kind="decoder" if decoder else "encoder",
            layers=config.num_hidden_layers,
            hidden=hidden,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads if decoder else heads,
            head_dim=getattr(config, "head_dim", None) or hidden // heads,
            vocab=config.vocab_size,
            max_context=config.max_position_embeddings,
            parameters=parameters,
            dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            head=("score" if "SequenceClassification" in architecture else "lm") if decoder else "none",
            softcap=getattr(config, "final_logit_softcapping", None) is not None,
            norms_per_layer=4 if config.model_type.startswith("gemma2") else 2,
            model_type=config.model_type,
        )
        return found if parameters else replace(found, parameters=found.counted())
    except Exception as error:  # noqa: BLE001 - a wrong config.json raises whatever the library's checks raise
        raise UserError(f"{name}: no configuration that a plan can be made from ({str(error)[:160]})") from None
