"""Lists as tensors: one row for a whole micro-batch, or one row per response.

    prompt A | response A0 | response A1 | … | prompt B | response B0 | …

With m responses of R tokens behind a prompt of P tokens the first has P + mR tokens, the second m(P + R).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from larpo.training.attention import Layout


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
    prompts: list[int]  # tokens of each prompt
    responses: list[list[int]]  # tokens of each list's responses
    shape: tuple[int, int]  # (B lists, width m)

    def to(self, device: torch.device | str) -> PackedLists:
        return PackedLists(
            *(v.to(device) if isinstance(v := getattr(self, f.name), Tensor) else v for f in fields(self))
        )

    def layout(self) -> Layout:
        rows = [[n - 1 for n in lengths] for lengths in self.responses]
        return Layout(self.prompts, rows)


def tokens_of(lists: Sequence[ResponseList], packed: bool = True) -> int:
    """That lists have in memory: N of the packed row, or of one row per response with all that fills it up."""
    if packed:
        return sum(len(entry.prompt_ids) + sum(len(ids) - 1 for ids in entry.response_ids) for entry in lists)
    rows = [len(entry.prompt_ids) + len(ids) - 1 for entry in lists for ids in entry.response_ids]
    return len(rows) * max(rows)


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
        [len(entry.prompt_ids) for entry in lists],
        [[len(response) for response in entry.response_ids] for entry in lists],
        (len(lists), width),
    )


def one_per_row(packed: PackedLists) -> tuple[Tensor, Tensor]:
    """The same tokens with every response behind its prompt in a row of its own, padded on the right with zeros.

    Returns
    -------
    input_ids
        (n responses, longest) int64; a causal model needs no mask to leave what follows a token out.
    predict_from
        (T,) index into the flattened rows, in the order of `packed.targets`.
    """
    sequences, predict_from, start, first = [], [], 0, 0
    for n_prompt, lengths in zip(packed.prompts, packed.responses, strict=True):
        prompt = packed.input_ids[0, start : start + n_prompt]
        start += n_prompt + sum(lengths) - len(lengths)
        for n in lengths:
            sequences.append(torch.cat([prompt, packed.targets[first : first + n - 1]]))
            predict_from.append(torch.arange(n_prompt - 1, n_prompt - 1 + n))
            first += n
    rows = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    flat = torch.cat([row * rows.shape[1] + where for row, where in enumerate(predict_from)])
    return rows, flat.to(rows.device)
