"""Attention over packed lists, without an N × N mask.

A row holds lists one after the other, each as its prompt and its responses (`larpo.training.logps`):

    prompt A | response A0 | response A1 | … | prompt B | response B0 | …

A prompt's token attends to the earlier ones of its prompt; a response's token to its whole prompt and to the earlier
ones of its own response, within the layer's window. Every part is therefore causal attention of R queries over the
last R of S keys: S = R for a prompt, S = P + R for a response. What else a layer's attention is (scaling, soft cap,
sinks) its own module passes to the function registered here under `NAME`; the window comes from the mask that the model
asks for. A model that asks for anything else is refused (`NotPacked`), and is computed in another way.

Kernels: on the CPU one scaled_dot_product_attention per part. On CUDA one variable-length call for all parts in half
precision (`torch.nn.attention.varlen`), parts of like size in one batch where there is a soft cap or a sink, which no
fused kernel knows, else as on the CPU. (FlexAttention knows both, but compiles for half a minute,
and its compiler gave up on Gemma-2 in training.)
"""

import functools
import inspect
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "larpo_lists"
SCORES = 2**26  # that exist at once where they are written out: 0.25 GB in float32, and about four such tensors

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


class Calls:
    count = 0  # shared by copies of what holds it: FSDP's mixed precision hands each layer a copy of a dataclass


@dataclass
class Layout:
    """Where the parts of packed lists lie. `fused`: whether `torch.nn.attention.varlen` may be used."""

    prompts: list[int]  # rows of each prompt
    responses: list[list[int]]  # rows of each list's responses, 0 where only a response's last token is predicted
    fused: bool = True
    calls: Calls = field(default_factory=Calls, repr=False)  # of `list_attention`
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
        return attend(query, key, value, kind, {}).transpose(1, 2).contiguous(), None
    lists.calls.count += 1
    out = lists_kernel(query, value, kind, lists)(query, key, value, kind, lists)
    return out.transpose(1, 2).contiguous(), None  # as transformers' own: some models `view` it


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
            return by_batch
        half = lists.fused and query.dtype in (torch.bfloat16, torch.float16)
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
    return written_out(query, key, value, kind, masks[size])


def written_out(query: Tensor, key: Tensor, value: Tensor, kind: Kind, mask: Tensor) -> Tensor:
    """(B, H, R, D_v), as transformers' `eager` attention; `mask` (…, R, S) is true where a query sees a key."""
    scores = query @ key.transpose(2, 3) * kind.scaling
    if kind.softcap is not None:
        scores = kind.softcap * torch.tanh(scores / kind.softcap)
    scores = scores.float().masked_fill(~mask, -torch.inf)
    if kind.sinks is not None:
        sinks = kind.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, -1)[..., : key.shape[2]].to(value.dtype)
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


@dataclass(frozen=True)
class Batch:
    """Parts of like size, filled up to the largest: G parts of at most R rows and S keys."""

    rows: Tensor  # (G, R) each part's rows
    keys: Tensor  # (G, S) the rows that it may see
    mask: Tensor  # (G, 1, R, S) those that a row sees


def by_batch(query: Tensor, key: Tensor, value: Tensor, kind: Kind, lists: Layout) -> Tensor:
    """Parts of like size in one batch, recomputed in the backward pass: scores of one batch exist at a time."""
    if ("batches", kind.window) not in lists.cache:
        lists.cache["batches", kind.window] = batches(lists, kind.window, query.shape[1], query.device)
    found, order = lists.cache["batches", kind.window]
    groups, done = query.shape[1] // key.shape[1], []

    def one(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        q, k, v = (x[0][:, at].transpose(0, 1) for x, at in ((q, batch.rows), (k, batch.keys), (v, batch.keys)))
        return written_out(q, repeat(k, groups), repeat(v, groups), kind, batch.mask)

    for batch in found:
        if torch.is_grad_enabled():
            out = checkpoint(one, query, key, value, batch, use_reentrant=False, preserve_rng_state=False)
        else:
            out = one(query, key, value, batch)
        done.append(out.transpose(1, 2).flatten(0, 1))  # (G · R, H, D_v)
    return torch.cat(done)[order].transpose(0, 1)[None]


def batches(lists: Layout, window: int | None, heads: int, device: torch.device) -> tuple[list[Batch], Tensor]:
    """Batches of at most `SCORES` numbers per tensor, or of one part, and where in their output each of N rows is."""
    parts: list[tuple[list[int], list[int]]] = []  # rows, keys
    start = 0
    for n_prompt, responses in zip(lists.prompts, lists.responses, strict=True):
        prompt = list(range(start, start := start + n_prompt))
        parts.append((prompt, prompt))
        for n in responses:
            own = list(range(start, start := start + n))
            parts.append((own, prompt + own))
    parts = sorted((part for part in parts if part[0]), key=lambda part: (-len(part[0]), -len(part[1])))
    found: list[list[tuple[list[int], list[int]]]] = []
    for part in parts:
        group = [*found[-1], part] if found else [part]
        most = len(group[0][0]) * max(len(keys) for _, keys in group)
        alike = 2 * len(part[0]) > len(group[0][0])
        if found and alike and heads * len(group) * most <= SCORES:
            found[-1] = group
        else:
            found.append([part])
    order, offset, out = [0] * start, 0, []
    for group in found:
        most_rows, most_keys = (max(len(part[i]) for part in group) for i in (0, 1))
        # What fills a part up is spread over all rows: their gradients, zeros, are added one by one.
        rows, keys = (
            torch.tensor([[*part[i], *(j % start for j in range(len(part[i]), most))] for part in group], device=device)
            for i, most in ((0, most_rows), (1, most_keys))
        )
        n_rows, n_keys = (torch.tensor([len(part[i]) for part in group], device=device) for i in (0, 1))
        row, column = (torch.arange(n, device=device) for n in (most_rows, most_keys))
        distance = (n_keys - n_rows)[:, None, None] + row[:, None] - column
        mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        mask &= column < n_keys[:, None, None]
        mask |= row[:, None] >= n_rows[:, None, None]  # a row that sees nothing would be no number
        out.append(Batch(rows, keys, mask[:, None]))
        for g, (own, _) in enumerate(group):
            for i, at in enumerate(own):
                order[at] = offset + g * most_rows + i
        offset += len(group) * most_rows
    return out, torch.tensor(order, device=device)


AttentionInterface.register(NAME, list_attention)
AttentionMaskInterface.register(NAME, causal_mask)
