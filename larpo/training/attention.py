"""Attention over packed lists, without an N × N mask.

A row holds lists one after the other, each as its prompt and its responses (`larpo.training.logps`):

    prompt A | response A0 | response A1 | … | prompt B | response B0 | …

A prompt's token attends to the earlier ones of its prompt; a response's token to its whole prompt and to the earlier
ones of its own response, within the layer's window. Every part is therefore causal attention of R queries over the
last R of S keys: S = R for a prompt, S = P + R for a response. What else a layer's attention is (scaling, soft cap,
sinks) its own module passes to the function registered here under `NAME`; the window comes from the mask that the model
asks for. A model that asks for anything else is refused (`NotPacked`), and is computed in another way.

Kernels: on the CPU one scaled_dot_product_attention per part. On CUDA one variable-length call for all parts in half
precision (`torch.nn.attention.varlen`), FlexAttention where there is a soft cap or a sink, else as on the CPU.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "larpo_lists"

# Of the arguments that attention modules pass on, those that change nothing where no cache is in use.
WITHOUT_EFFECT = {
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "sliding_window",  # the mask has it
    "layer_idx",
    "num_items_in_batch",
}


class NotPacked(Exception):
    """This model's attention is not what packed lists can compute; the reason."""


@dataclass
class Layout:
    """Where the parts of packed lists lie. `flex`: whether FlexAttention may be compiled."""

    prompts: list[int]  # rows of each prompt
    responses: list[list[int]]  # rows of each list's responses, 0 where only a response's last token is predicted
    block: Tensor  # (N,) which list a row belongs to
    branch: Tensor  # (N,) which response of it, -1 for the prompt
    positions: Tensor  # (N,) counted from the prompt's first token
    flex: bool = True
    calls: int = 0  # of `list_attention`
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def parts(self) -> list[int]:
        """Rows of every prompt and response, in their order in the row; they add up to N."""
        return [rows for p, rs in zip(self.prompts, self.responses, strict=True) for rows in (p, *rs)]


@dataclass(frozen=True)
class CausalMask:
    """What a model's layer asks for in place of a mask tensor."""

    window: int | None  # keys that a query sees, itself included; None for all
    padded: bool  # a mask over tokens was given: for packed lists only, where it says nothing


def causal_mask(*, mask_function: Any, attention_mask: Tensor | None = None, local_size: int | None = None, **_: Any):
    """The mask of a kind of layers, for transformers' AttentionMaskInterface.

    Raises
    ------
    NotPacked
        The mask is neither causal nor a sliding window: attention in chunks, blocks that see both ways.
    """
    near = (
        [0, 1, 2, 5] if local_size is None else [0, 1, local_size - 1, local_size, local_size + 1, 2 * local_size + 1]
    )
    query, key = torch.tensor(sorted({*near, 4096}))[:, None], torch.tensor(sorted({*near, 4096}))[None]
    expected = (key <= query) & (query - key < (local_size or 8192))
    try:
        visible = torch.as_tensor(mask_function(0, 0, query, key)).expand_as(expected)
    except (RuntimeError, IndexError, TypeError) as error:
        raise NotPacked(f"its masks are its own ({type(error).__name__})") from None
    if not torch.equal(visible, expected):
        raise NotPacked("its masks are neither causal nor a sliding window")
    return CausalMask(local_size, attention_mask is not None)


def list_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: CausalMask | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    lists: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, for transformers' AttentionInterface; without `lists` every row is one sequence.

    Parameters
    ----------
    query, key, value
        (B, H, N, D), (B, H_kv, N, D), (B, H_kv, N, D_v); B = 1 with `lists`.
    scaling, softcap, s_aux
        softmax(cap · tanh(q·k · scaling / cap)) with one more logit per head, `s_aux` (H,), that takes probability.

    Returns
    -------
    (B, N, H, D_v), and None for the attention weights.
    """
    more = sorted(k for k, v in others.items() if v is not None and k not in WITHOUT_EFFECT)
    if more or is_causal is False:
        raise NotPacked(f"its attention has an argument that packing does not know: {(more or ['is_causal'])[0]}")
    if not isinstance(attention_mask, CausalMask) or (attention_mask.padded and lists is None):
        raise NotPacked("its masks are its own")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    kind = Kind(
        attention_mask.window,
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap,
        s_aux,
        float(dropout) if module.training else 0.0,
    )
    if lists is None:
        return attend(query, key, value, kind, {}).transpose(1, 2), None
    lists.calls += 1
    return lists_kernel(query, value, kind, lists)(query, key, value, kind, lists).transpose(1, 2), None


@dataclass(frozen=True)
class Kind:
    """What kind of causal attention a layer has."""

    window: int | None
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    dropout: float

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None


def lists_kernel(query: Tensor, value: Tensor, kind: Kind, lists: Layout) -> Any:
    if query.is_cuda and not kind.dropout:
        if not kind.plain:
            return by_flex if lists.flex else by_part
        half = query.dtype in (torch.bfloat16, torch.float16)
        if half and query.shape[-1] <= 256 and query.shape[-1] == value.shape[-1] and varlen() is not None:
            return by_varlen
    return by_part


def attend(query: Tensor, key: Tensor, value: Tensor, kind: Kind, masks: dict[Any, Tensor]) -> Tensor:
    """Causal attention of R queries over S ≥ R keys, the last R of which are the queries' own: (B, H, R, D_v)."""
    rows = query.shape[2]
    if kind.window is not None:  # keys that no query sees are left out
        seen = min(key.shape[2], rows + kind.window - 1)
        key, value = key[:, :, -seen:], value[:, :, -seen:]
    columns, groups = key.shape[2], query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = repeat(key, groups), repeat(value, groups)
    whole = rows == columns and (kind.window is None or kind.window >= rows)
    if whole and kind.plain:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=rows > 1, dropout_p=kind.dropout, scale=kind.scaling
        )
    size = rows, columns, kind.window
    if size not in masks:
        masks[size] = band(*size, query.device)
    if kind.plain:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=masks[size], dropout_p=kind.dropout, scale=kind.scaling
        )
    scores = query @ key.transpose(2, 3) * kind.scaling
    if kind.softcap is not None:
        scores = kind.softcap * torch.tanh(scores / kind.softcap)
    scores = scores.float().masked_fill(~masks[size], -torch.inf)
    if kind.sinks is not None:
        sinks = kind.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, -1)[..., :columns].to(value.dtype)
    return F.dropout(weights, kind.dropout) @ value


def repeat(x: Tensor, groups: int) -> Tensor:
    """(B, H_kv, N, D) → (B, H, N, D): each key head serves `groups` query heads."""
    return x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)


def band(rows: int, columns: int, window: int | None, device: torch.device) -> Tensor:
    """(rows, columns) bool: query i stands at key position columns − rows + i and sees `window` keys up to itself."""
    distance = torch.arange(rows, device=device)[:, None] + (columns - rows) - torch.arange(columns, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def gathered(x: Tensor, lists: Layout, dim: int) -> list[Tensor]:
    """For every part its keys (or values): a prompt's own rows; a response's prompt and own rows."""
    pieces, keys = iter(x.split(lists.parts(), dim)), []
    for responses in lists.responses:
        prompt = next(pieces)
        keys.append([prompt])
        keys += [[prompt, next(pieces)] for _ in responses]
    return keys


def by_part(query: Tensor, key: Tensor, value: Tensor, kind: Kind, lists: Layout) -> Tensor:
    """One call per prompt and response: (1, H, N, D_v)."""
    parts = zip(query.split(lists.parts(), 2), gathered(key, lists, 2), gathered(value, lists, 2), strict=True)
    masks = lists.cache.setdefault("masks", {})
    done = [attend(q, torch.cat(k, 2), torch.cat(v, 2), kind, masks) for q, k, v in parts if q.shape[2]]
    return torch.cat(done, 2)


@functools.cache
def varlen() -> Any:
    """`varlen_attn` of this torch, None where it has none that takes a window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def by_varlen(query: Tensor, key: Tensor, value: Tensor, kind: Kind, lists: Layout) -> Tensor:
    """All parts in one call; a prompt's keys are copied once per response."""
    if "varlen" not in lists.cache:
        kept = [i for i, rows in enumerate(lists.parts()) if rows]
        prompts = [p for p, rs in zip(lists.prompts, lists.responses, strict=True) for p in (0, *[p] * len(rs))]
        rows = [lists.parts()[i] for i in kept]
        columns = [prompts[i] + lists.parts()[i] for i in kept]
        ends = [
            torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32, device=query.device) for x in (rows, columns)
        ]
        lists.cache["varlen"] = kept, ends, max(rows), max(columns)
    kept, (ends_q, ends_k), most_q, most_k = lists.cache["varlen"]
    flat = []
    for x in (key, value):
        keys = gathered(x[0].transpose(0, 1), lists, 0)
        flat.append(torch.cat([piece for i in kept for piece in keys[i]]))
    options: dict[str, Any] = {"scale": kind.scaling}
    if "enable_gqa" in inspect.signature(varlen()).parameters:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    window = (-1, 0) if kind.window is None else (kind.window - 1, 0)
    rows_first = query[0].transpose(0, 1).contiguous()
    out = varlen()(rows_first, *flat, ends_q, ends_k, most_q, most_k, window_size=window, **options)
    return out.transpose(0, 1)[None]


@functools.cache
def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def by_flex(query: Tensor, key: Tensor, value: Tensor, kind: Kind, lists: Layout) -> Tensor:
    """FlexAttention over the whole row, padded to a multiple of 128; parts that do not see each other cost nothing."""
    from torch.nn.attention.flex_attention import create_block_mask
    from transformers.integrations.flex_attention import get_flex_attention_lse_kwargs

    n, more = query.shape[2], -query.shape[2] % 128
    block, branch, positions = (F.pad(x, (0, more), value=-2) for x in (lists.block, lists.branch, lists.positions))
    window, cap = kind.window, kind.softcap

    def visible(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = (block[q] == block[k]) & (q >= k) & ((branch[k] == -1) | (branch[q] == branch[k]))
        return same if window is None else same & (positions[q] - positions[k] < window)

    def capped(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    if ("flex", window) not in lists.cache:
        size = n + more
        lists.cache["flex", window] = create_block_mask(visible, None, None, size, size, device=query.device)
    padded = (F.pad(x, (0, 0, 0, more)) for x in (query, key, value))
    out = compiled_flex()(
        *padded,
        score_mod=None if cap is None else capped,
        block_mask=lists.cache["flex", window],
        scale=kind.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        **get_flex_attention_lse_kwargs(kind.sinks is not None),
    )
    if kind.sinks is not None:
        out, aux = out
        lse = aux.lse if hasattr(aux, "lse") else aux
        out = out * torch.sigmoid(lse - kind.sinks.float().view(1, -1, 1))[..., None].to(out.dtype)
    return out[:, :, :n]


AttentionInterface.register(NAME, list_attention)
AttentionMaskInterface.register(NAME, causal_mask)
