"""PairRM's network (Jiang et al. 2023, "LLM-Blender"): DeBERTa over prompt and two candidates, and a head.

    input   [CLS] <|source|> x [SEP] [CLS] <|candidate1|> y1 [SEP] [CLS] <|candidate2|> y2 [SEP]
    logit   head([h_source ; h_candidate1]) − head([h_source ; h_candidate2])      positive: y1 is better
    head    Linear(2d → d), tanh, Linear(d → tasks), mean over the tasks

h are the encoder's last hidden states at the three marker tokens. The names of the modules are those of the published
weights (llm-blender/PairRM and llm-blender/PairRM-hf).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import cached_file

from larpo.config.reward import RewardParams
from larpo.errors import UserError
from larpo.models.load import UNUSABLE, dtype_of, line
from larpo.rewards.checkpoint import model_source

SOURCE, CANDIDATE1, CANDIDATE2 = "<|source|>", "<|candidate1|>", "<|candidate2|>"

# microsoft/deberta-v3-large with PairRM's five added tokens: for llm-blender/PairRM, whose config.json describes the
# ranker and not the network.
_LARGE = {
    "vocab_size": 128005,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "pad_token_id": 0,
}


class PairRM(DebertaV2PreTrainedModel):
    base_model_prefix = "pretrained_model"

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        drop, size = getattr(config, "drop_out", 0.05), config.hidden_size
        # Positions 1 and 4 hold the published weights.
        self.head_layer = nn.Sequential(
            nn.Dropout(drop),
            nn.Linear(2 * size, size),
            nn.Tanh(),
            nn.Dropout(drop),
            nn.Linear(size, getattr(config, "n_tasks", 1)),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, markers: Tensor) -> Tensor:
        """(B,) float32 logits of (B, T) inputs; `markers` (B, 3) are the positions of source, candidate 1 and 2."""
        hidden = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        source, left, right = hidden.float()[torch.arange(len(markers))[:, None], markers].unbind(1)
        scores = [self.head_layer(torch.cat([source, side], dim=-1)) for side in (left, right)]
        return (scores[0] - scores[1]).mean(-1)


def fetch_pairrm(params: RewardParams) -> tuple[PairRM, Tokenizer, dict[str, Any]]:
    """Model, tokenizer with the markers, and facts, from either published layout."""
    source, options, facts = model_source(params)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options, trust_remote_code=False)
        raw = json.loads(Path(cached_file(source, "config.json", **options)).read_text("utf-8"))
        config = DebertaV2Config(**_LARGE, drop_out=raw["drop_out"], n_tasks=raw["n_tasks"])
        if "ranker_type" not in raw:
            config = DebertaV2Config.from_pretrained(source, **options)
        model, found = PairRM.from_pretrained(
            source,
            config=config,
            dtype=dtype_of(params.dtype),
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except UNUSABLE as error:
        raise UserError(
            f"params.yaml: reward.model: cannot load {params.model!r} as PairRM ({line(error)}); expected the files of "
            "llm-blender/PairRM-hf, weights as .safetensors"
        ) from None
    if found["missing_keys"]:
        raise UserError(
            f"params.yaml: reward.model: {params.model!r} lacks {sorted(found['missing_keys'])[0]} and "
            f"{len(found['missing_keys']) - 1} other weights of PairRM; is reward.kind right?"
        )
    lost = [t for t in (SOURCE, CANDIDATE1, CANDIDATE2) if len(tokenizer.encode(t, add_special_tokens=False)) != 1]
    if lost:
        raise UserError(f"params.yaml: reward.model: the tokenizer of {params.model!r} has no token {lost[0]}")
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise UserError(f"params.yaml: reward.model: the tokenizer of {params.model!r} lacks [CLS], [SEP] or [PAD]")
    facts["revision"] = getattr(model.config, "_commit_hash", None) or facts.get("revision")
    return model, tokenizer, {"parameters": model.num_parameters(), **facts}


def load_pairrm(folder: Path, dtype: str) -> tuple[PairRM, Tokenizer]:
    """PairRM of the node `reward`; its head computes in float32."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        model = PairRM.from_pretrained(str(folder), dtype=dtype_of(dtype), use_safetensors=True)
    except UNUSABLE as error:
        raise UserError(f"{folder}: no usable PairRM ({line(error)}); run `dvc repro reward`") from None
    model.head_layer.float()
    return model, tokenizer
