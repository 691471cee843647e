"""Batches of ranked lists for the tests of the objectives."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from larpo.objectives import ListBatch, build

relaxed = settings(max_examples=60, deadline=None)  # first calls into torch are slow


def make(policy, reference=None, rewards=None, mask=None, lengths=None, mismatched=None) -> ListBatch:
    """A batch of one list, or of several (nested lists); rewards default to m, m-1, ..., 1."""
    policy = torch.as_tensor(policy, dtype=None if isinstance(policy, Tensor) else torch.float64)
    policy = policy.reshape(-1, policy.shape[-1])

    def tensor(value, default: Tensor) -> Tensor:
        if value is None:
            return default.expand(policy.shape)
        return torch.as_tensor(value).reshape(policy.shape)

    return ListBatch(
        policy,
        tensor(reference, torch.zeros_like(policy)).to(policy.dtype),
        tensor(lengths, torch.full(policy.shape, 7)),
        tensor(rewards, torch.arange(policy.shape[1], 0, -1).float()),
        tensor(mask, torch.ones(policy.shape, dtype=torch.bool)),
        None if mismatched is None else torch.as_tensor(mismatched, dtype=policy.dtype),
    )


def loss_and_grad(name: str, policy: Tensor, params: dict | None = None, **columns) -> tuple[Tensor, Tensor]:
    policy = policy.clone().requires_grad_()
    loss = build(name, **(params or {}))(make(policy, **columns))
    (grad,) = torch.autograd.grad(loss.sum(), policy)
    return loss.detach(), grad


@st.composite
def lists(draw, low=2, high=6, span=300.0, strict_first=True):
    """(policy, reference, rewards) of one list as float64 (m,); rewards fall and may tie."""
    m = draw(st.integers(low, high))
    logp = st.floats(-span, 0, allow_nan=False)
    policy, reference = (draw(st.lists(logp, min_size=m, max_size=m)) for _ in range(2))
    rewards = sorted(draw(st.lists(st.integers(-3, 3), min_size=m, max_size=m)), reverse=True)
    rewards[0] += strict_first and rewards[0] == rewards[-1]
    return tuple(torch.tensor(x, dtype=torch.float64) for x in (policy, reference, rewards))
