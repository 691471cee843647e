"""Log-probabilities of a list's responses, with the prompt computed once for all of them.

A micro-batch of lists becomes one row of tokens without padding:

    prompt A | response A0 | response A1 | … | prompt B | response B0 | …

A token sees its own prompt and the earlier tokens of its own response and nothing else (a block mask), and
its position counts from its prompt's first token, so every response is computed exactly as if it stood alone
behind its prompt. With m responses of R tokens behind a prompt of P tokens that is P + mR tokens instead
of m(P + R). A test compares it with a loop that feeds one response at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class ResponseList:
    """One prompt with its ordered responses, as token ids from the sampler."""

    prompt_ids: list[int]
    response_ids: list[list[int]]


@dataclass
class PackedLists:
    """A micro-batch as one row of N tokens; T of them are response tokens, to be predicted."""

    input_ids: Tensor  # (1, N)
    position_ids: Tensor  # (1, N)
    block: Tensor  # (N,) which prompt a token belongs to
    branch: Tensor  # (N,) which response of it, -1 for the prompt itself
    predict_from: Tensor  # (T,) row index of the token whose logits predict the target
    targets: Tensor  # (T,) token ids
    slot: Tensor  # (T,) list index * width + response index
    shape: tuple[int, int]  # (B lists, width m)

    def to(self, device: torch.device | str) -> PackedLists:
        return PackedLists(
            *(v.to(device) if isinstance(v := getattr(self, f.name), Tensor) else v for f in fields(self))
        )


def pack(lists: list[ResponseList]) -> PackedLists:
    """Lay lists out as one row. Lists may differ in length; no response and no prompt may be empty."""
    ids: list[int] = []
    positions: list[int] = []
    block: list[int] = []
    branch: list[int] = []
    predict_from: list[int] = []
    targets: list[int] = []
    slot: list[int] = []
    width = max(len(entry.response_ids) for entry in lists)
    for b, entry in enumerate(lists):
        if not entry.prompt_ids or any(not r for r in entry.response_ids):
            raise ValueError(f"list {b} holds an empty prompt or response; these are dropped when lists are built")
        n_prompt = len(entry.prompt_ids)
        ids += entry.prompt_ids
        positions += range(n_prompt)
        block += [b] * n_prompt
        branch += [-1] * n_prompt
        last_of_prompt = len(ids) - 1
        for j, response in enumerate(entry.response_ids):
            start = len(ids)
            # The last token predicts nothing, so it need not be computed.
            ids += response[:-1]
            positions += range(n_prompt, n_prompt + len(response) - 1)
            block += [b] * (len(response) - 1)
            branch += [j] * (len(response) - 1)
            predict_from += [last_of_prompt, *range(start, start + len(response) - 1)]
            targets += response
            slot += [b * width + j] * len(response)
    return PackedLists(
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor(block),
        torch.tensor(branch),
        torch.tensor(predict_from),
        torch.tensor(targets),
        torch.tensor(slot),
        (len(lists), width),
    )


def attention_mask(packed: PackedLists, dtype: torch.dtype) -> Tensor:
    """(1, 1, N, N) additive mask: 0 where row i may see column j, the dtype's minimum elsewhere."""
    i, j = packed.block[:, None], packed.block[None, :]
    order = torch.arange(len(packed.block), device=packed.block.device)
    own = packed.branch[:, None] == packed.branch[None, :]
    visible = (i == j) & (order[:, None] >= order[None, :]) & (own | (packed.branch[None, :] == -1))
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[None, None]


def response_logps(model: PreTrainedModel, packed: PackedLists) -> tuple[Tensor, Tensor]:
    """Summed log-probability of every response.

    Log-softmax and sums run in float32 whatever the model's dtype: near 300, bfloat16 numbers are 2 apart.

    Returns
    -------
    logps
        (B, m) float32, 0 where a list has fewer than m responses.
    lengths
        (B, m) int64 numbers of response tokens.
    """
    dtype = next(model.parameters()).dtype
    # Logits are needed only where a response token is predicted; over a large vocabulary that is most of
    # the memory.
    unique, where = torch.unique(packed.predict_from, return_inverse=True)
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=attention_mask(packed, dtype),
        logits_to_keep=unique,
        use_cache=False,
    ).logits[0]
    logits = logits.float()
    logps = logits[where, packed.targets] - torch.logsumexp(logits, dim=-1)[where]
    count = packed.shape[0] * packed.shape[1]
    sums = torch.zeros(count, dtype=torch.float32, device=logps.device).index_add(0, packed.slot, logps)
    return sums.view(packed.shape), torch.bincount(packed.slot, minlength=count).view(packed.shape)
