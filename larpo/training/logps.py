"""Log-probabilities of a list's responses, with the prompt computed once for all of them.

A token sees its own prompt and the earlier tokens of its own response and nothing else (`larpo.training.attention`),
and its position counts from its prompt's first token, so every response is computed exactly as if it stood alone
behind its prompt. A model that cannot be packed exactly is computed one response per row (`larpo.training.forward`).
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from larpo.training.forward import token_logps
from larpo.training.packing import PackedLists


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
    logps = token_logps(model, packed)
    count = packed.shape[0] * packed.shape[1]
    sums = torch.zeros(count, dtype=torch.float32, device=logps.device).index_add(0, packed.slot, logps)
    lengths = torch.zeros(packed.shape, dtype=torch.long)
    for row, own in zip(lengths, packed.responses, strict=True):
        row[: len(own)] = torch.tensor(own)
    return sums.view(packed.shape), lengths.to(logps.device)
