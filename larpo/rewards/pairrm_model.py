"""PairRM's network (Jiang et al. 2023, "LLM-Blender"): DeBERTa over prompt and two candidates, and a head.

    input   [CLS] <|source|> x [SEP] [CLS] <|candidate1|> y1 [SEP] [CLS] <|candidate2|> y2 [SEP]
    logit   head([h_source ; h_candidate1]) − head([h_source ; h_candidate2])      positive: y1 is better
    head    Linear(2d → d), tanh, Linear(d → tasks), mean over the tasks

h are the encoder's last hidden states at the three marker tokens. The names of the modules are those of the published
weights (llm-blender/PairRM and llm-blender/PairRM-hf).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from larpo.config.reward import RewardParams
from larpo.errors import UserError, one_line
from larpo.models.load import open_tokenizer, open_weights
from larpo.models.remote_code import config_of
from larpo.models.resolve import Checkpoint, Model, of
from larpo.rewards.checkpoint import facts_of, where

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


def fetch_pairrm(params: RewardParams, checkpoint: Checkpoint) -> tuple[PairRM, Tokenizer, dict[str, Any]]:
    """Model, tokenizer with the markers, and facts, from either published layout."""
    name = where(params)
    tokenizer = open_tokenizer(checkpoint, name)
    raw = config_of(checkpoint)
    try:
        if "ranker_type" in raw:
            config = DebertaV2Config(**_LARGE, drop_out=raw["drop_out"], n_tasks=raw["n_tasks"])
        else:
            config = DebertaV2Config.from_pretrained(checkpoint.source, **checkpoint.options)
    except Exception as error:  # noqa: BLE001 - as for every part of a checkpoint (larpo.models.load)
        raise UserError(
            f"{name}: cannot load as PairRM ({one_line(error)[:160]}); expected the files of llm-blender/PairRM-hf"
        ) from None
    model, info = open_weights(PairRM, checkpoint, params.dtype, (), name, config=config)
    if info["missing_keys"]:
        raise UserError(
            f"{name} lacks {sorted(info['missing_keys'])[0]} and {len(info['missing_keys']) - 1} other weights of "
            "PairRM; is reward.kind right?"
        )
    lost = [t for t in (SOURCE, CANDIDATE1, CANDIDATE2) if len(tokenizer.encode(t, add_special_tokens=False)) != 1]
    if lost:
        raise UserError(f"{name}: the tokenizer has no token {lost[0]}")
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise UserError(f"{name}: the tokenizer lacks [CLS], [SEP] or [PAD]")
    return model, tokenizer, facts_of(model, checkpoint)


def load_pairrm(model: Model, dtype: str) -> tuple[PairRM, Tokenizer]:
    """PairRM of the node `reward`; its head computes in float32."""
    checkpoint, name = of(model), f"{model}, which `dvc repro reward` makes"
    loaded, _ = open_weights(PairRM, checkpoint, dtype, (), name)
    loaded.head_layer.float()
    return loaded, open_tokenizer(checkpoint, name)
