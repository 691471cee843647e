"""The objectives of the paper (Table 1, Appendix F), with

    γ_i = β · (log π(y_i|x) − log π_ref(y_i|x))          log-probabilities summed over response tokens

    pairwise      −log σ(γ_1 − γ_2)                                        two responses (DPO)
    contrastive   −log [exp γ_1 / (exp γ_1 + Σ_j exp γ_j)]                 j: every r_j < r_1
    lambdarank    −Σ log σ(γ_i − γ_j)                                      i < j with r_i > r_j
    listmle       −Σ_i log [exp γ_i / Σ_{j≥i} exp γ_j]                     Plackett-Luce, Eq. 23

Equal rewards state no preference: the first three then skip the pair, and a list without any strict
preference has a loss of exactly 0 and a gradient of exactly 0. ListMLE scores an order, not pairs: it
takes the columns as they stand, so whoever builds the list decides how ties are broken (the lists node
does, by a seeded hash) and leaves out prompts whose rewards are all equal.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from larpo.objectives import Positive
from larpo.objectives.batch import ListBatch, chosen_and_rejected, pick

# Scores closer than this share a rank in the ΔNDCG weight. At step 0 all γ are 0 up to rounding; without
# it that rounding would decide the ranks, and with them the loss.
RANK_RESOLUTION = 1e-3


def pairwise(batch: ListBatch, *, beta: Positive = 0.1) -> Tensor:
    """−log σ(γ_1 − γ_2), (B,): DPO, Bradley-Terry. Raises UserError unless every list has two responses."""
    chosen, rejected = chosen_and_rejected(batch, "pairwise")
    gamma = batch.gamma(beta)
    return torch.where(batch.strict(), -F.logsigmoid(pick(gamma, chosen) - pick(gamma, rejected)), 0)


pairwise.takes_pairs = True


def contrastive(batch: ListBatch, *, beta: Positive = 0.1) -> Tensor:
    """−log softmax of the first response among itself and all with a strictly lower reward, (B,)."""
    gamma = batch.gamma(beta)
    first = batch.first()
    positive = pick(gamma, first)
    worse = batch.mask & (batch.rewards < pick(batch.rewards, first)[:, None])
    negatives = torch.where(worse, gamma, -torch.inf)
    # The positive is always in the sum: no row of −inf alone, so no NaN gradient.
    return torch.cat([positive[:, None], negatives], dim=1).logsumexp(1) - positive


def lambdarank(batch: ListBatch, *, beta: Positive = 0.1, weight: Literal["none", "ndcg"] = "none") -> Tensor:
    """−Σ w_ij log σ(γ_i − γ_j) over the pairs with r_i > r_j, (B,); a sum, not a mean.

    weight="none" is the paper's form, w = 1. weight="ndcg" is LambdaRank's own (Burges 2010), the NDCG that
    swapping i and j would cost: w_ij = |g_i − g_j| |d_i − d_j| / Σ g d, constant in the gradient. Gains g are
    rewards scaled linearly to [0, 1] within the list (2^reward suits graded labels; reward-model scores have
    no natural zero or unit). Discounts d = 1 / log2(1 + rank) go by the rank of γ in the list, as the policy
    orders it now; γ within RANK_RESOLUTION tie and keep the reward order. Σ g d is the ideal ranking's.
    """
    gamma = batch.gamma(beta)
    pairs = batch.preferred()
    losses = -F.logsigmoid(gamma[:, :, None] - gamma[:, None, :])
    if weight == "ndcg":
        losses = losses * torch.where(pairs, _ndcg_weights(batch, gamma.detach()), 0)
    return torch.where(pairs, losses, 0).sum((1, 2))


def _gains(batch: ListBatch) -> Tensor:
    highest = batch.rewards.where(batch.mask, -torch.inf).amax(1, keepdim=True)
    lowest = batch.rewards.where(batch.mask, torch.inf).amin(1, keepdim=True)
    return torch.where(batch.mask & (highest > lowest), (batch.rewards - lowest) / (highest - lowest), 0)


def _discounts(batch: ListBatch, ranks: Tensor) -> Tensor:
    return 1 / torch.log2(1 + ranks.to(batch.dtype))


def _ndcg_weights(batch: ListBatch, gamma: Tensor) -> Tensor:
    """|ΔNDCG| of swapping i and j in the ranking by γ, (B, m, m); meaningless off the valid pairs."""
    highest = gamma.where(batch.mask, -torch.inf).amax(1, keepdim=True)
    score = ((gamma - highest) / RANK_RESOLUTION).round().where(batch.mask, -torch.inf)
    ranks = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
    gains, discounts = _gains(batch), _discounts(batch, ranks)
    ideal = (gains * _discounts(batch, batch.mask.cumsum(1))).sum(1)[:, None, None]
    swaps = (gains[:, :, None] - gains[:, None, :]) * (discounts[:, :, None] - discounts[:, None, :])
    return (swaps.abs() / ideal).to(gamma.dtype)


def listmle(batch: ListBatch, *, beta: Positive = 0.1) -> Tensor:
    """−log of the Plackett-Luce probability of the columns' order, (B,), Eq. 23.

    Ties: the order given counts, equal rewards or not (see the module's head). A list of equal rewards would
    push the policy towards an arbitrary order: finite, but do not build one.
    """
    gamma = batch.gamma(beta)
    square = batch.mask.new_ones(gamma.shape[1], gamma.shape[1])
    # Denominator i: logsumexp of γ_j over all valid j ≥ i. One row each rather than a reversed logcumsumexp,
    # whose backward loses digits at large |γ| and turns NaN on the −inf of padding; lists are short. The
    # diagonal stays in on padding too, so that no row is −inf alone.
    keep = square.triu() & (batch.mask[:, None, :] | ~square.triu(1))
    denominators = torch.where(keep, gamma[:, None, :], -torch.inf).logsumexp(2)
    return torch.where(batch.mask, denominators - gamma, 0).sum(1)
