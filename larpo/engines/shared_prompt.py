"""Decoding n responses of each prompt on one copy of the prompt's keys and values.

A cache that holds the prompt once per response, grows by a copy at every token and is repeated for every query head
moves gigabytes per token; the products that it serves are small. Here the attention of a response's newest token is one
softmax over two parts: its prompt, whose keys stay where they were computed, and the response so far.

For models whose layers all attend causally to everything before, through transformers' attention interface; others
raise `NotShared` and are decoded as usual.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

NAME = "larpo_shared_prompt"
EVERYTHING = object()  # the mask of a token that sees all before it
WITHOUT_EFFECT = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "layer_idx"}


class NotShared(Exception):
    """This model's attention is not what is computed here; the reason."""


@dataclass
class Prompts:
    """What the responses share: B prompts, n responses of each."""

    keys: list[Tensor]  # per layer (B, H_kv, P, D)
    values: list[Tensor]  # per layer (B, H_kv, P, D_v)
    hidden: Tensor  # (B, 1, 1, P): 0, or -inf where a prompt is padded
    count: int  # n
    rows: Tensor  # (R,) those of the B·n responses that are still decoded

    @classmethod
    def of(cls, cache: DynamicCache, mask: Tensor, count: int) -> "Prompts":
        """Of a cache that holds each prompt once; `mask` (B, P) is 0 where a prompt is padded."""
        if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise NotShared("its layers keep something else than all keys and values")
        hidden = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(mask == 0, -torch.inf)
        layers = cache.layers
        rows = torch.arange(len(mask) * count, device=mask.device)
        return cls([x.keys for x in layers], [x.values for x in layers], hidden[:, None, None], count, rows)

    def by_prompt(self, x: Tensor) -> Tensor:
        """(R, H, G, D) → (B, H, n·G, D), zeros for the rows that have left."""
        _, heads, groups, size = x.shape
        every = x.new_zeros(len(self.hidden) * self.count, heads, groups, size).index_copy_(0, self.rows, x)
        return every.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2, 3)

    def by_row(self, x: Tensor) -> Tensor:
        """Back: (B, H, n·G, D) → (R, H, G, D)."""
        return x.unflatten(2, (self.count, -1)).transpose(1, 2).flatten(0, 1)[self.rows]


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: Prompts | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer for transformers' AttentionInterface: (R, 1, H, D_v), and None for the weights.

    Parameters
    ----------
    query
        (R, H, 1, D), of each row's newest token.
    key, value
        (R, H_kv, S, D), (R, H_kv, S, D_v), of the row's S tokens behind its prompt.
    """
    more = sorted(k for k, v in others.items() if v is not None and k not in WITHOUT_EFFECT)
    if shared is None or more or attention_mask is not EVERYTHING:
        raise NotShared(f"its attention is another ({(more or ['mask'])[0]})")
    own_keys, own_values = shared.keys[module.layer_idx], shared.values[module.layer_idx]
    rows, heads, _, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    query = query.view(rows, key.shape[1], -1, size) * scale
    of_prompt = shared.by_prompt(query) @ own_keys.transpose(2, 3) + shared.hidden.to(query.dtype)
    scores = torch.cat([shared.by_row(of_prompt), query @ key.transpose(2, 3)], -1)
    weights = scores.float().softmax(-1).to(value.dtype)
    length = own_keys.shape[2]
    found = shared.by_row(shared.by_prompt(weights[..., :length]) @ own_values) + weights[..., length:] @ value
    return found.view(rows, 1, heads, -1), None


def mask(*, mask_function: Any, local_size: int | None = None, attention_mask: Tensor | None = None, **_: Any) -> Any:
    """For transformers' AttentionMaskInterface: only where the newest token sees all before it."""
    query, key = torch.tensor([0, 1, 5, 4096])[:, None], torch.tensor([0, 1, 5, 4096])[None]
    try:
        visible = torch.as_tensor(mask_function(0, 0, query, key)).expand(4, 4)
    except (RuntimeError, IndexError, TypeError) as error:
        raise NotShared(f"its masks are its own ({type(error).__name__})") from None
    if local_size is not None or attention_mask is not None or not torch.equal(visible, key <= query):
        raise NotShared("its masks are not causal alone")
    return EVERYTHING


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """The model attends by `attention` inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
