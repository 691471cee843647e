"""Ranking objectives: from the log-probabilities of ranked responses to one loss per list.

    loss = build("listmle", beta=0.1)(ListBatch(policy_logps, reference_logps, lengths, rewards, mask))

One list is the responses to one prompt in falling reward order, y_1 the best. With

    γ_i = β · (log π(y_i|x) − log π_ref(y_i|x))          log-probabilities summed over response tokens

the objectives of the paper (Table 1, Appendix F) are

    pairwise      −log σ(γ_1 − γ_2)                                        two responses (DPO)
    contrastive   −log [exp γ_1 / (exp γ_1 + Σ_j exp γ_j)]                 j: every r_j < r_1
    lambdarank    −Σ log σ(γ_i − γ_j)                                      i < j with r_i > r_j
    listmle       −Σ_i log [exp γ_i / Σ_{j≥i} exp γ_j]                     Plackett-Luce, Eq. 23

Equal rewards state no preference: the first three then skip the pair, and a list without any strict
preference has a loss of exactly 0 and a gradient of exactly 0. ListMLE scores an order, not pairs: it
takes the columns as they stand, so whoever builds the list decides how ties are broken (the lists node
does, by a seeded hash) and leaves out prompts whose rewards are all equal.

A new objective is one function with its value at the reference, and one `@register` line.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from larpo.errors import UserError

# Scores closer than this share a rank in the ΔNDCG weight. At step 0 all γ are 0 up to rounding; without
# it that rounding would decide the ranks, and with them the loss.
RANK_RESOLUTION = 1e-3

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class ListBatch:
    """B ranked lists, padded to m columns. All tensors are (B, m).

    policy_logps     log π(y|x), nats, summed over the response's tokens; the gradient flows through it
    reference_logps  log π_ref(y|x), nats, summed; a constant (detached)
    lengths          response tokens, at least 1
    rewards          finite, any sign, never rising from one column to the next
    mask             bool; False on padding, which may sit in any column

    Log-probabilities and rewards below float32 are raised to float32; float64 stays. Padding may hold
    anything, NaN included: it is replaced here (1 in lengths, 0 elsewhere), before any arithmetic, so that
    it reaches neither a loss nor a gradient. Raises UserError for tensors that break these rules.
    """

    policy_logps: Tensor
    reference_logps: Tensor
    lengths: Tensor
    rewards: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        shapes = {f.name: tuple(getattr(self, f.name).shape) for f in fields(self)}
        if len(set(shapes.values())) > 1 or len(shapes["mask"]) != 2:
            raise UserError(f"ListBatch: expected five tensors of one shape (B, m), found {shapes}")
        if self.mask.dtype != torch.bool:
            raise UserError(f"ListBatch: mask must be torch.bool, found {self.mask.dtype}; use mask.bool()")
        for name, filler in zip(list(shapes)[:4], (0, 0, 1, 0), strict=True):
            value = getattr(self, name)
            if name != "lengths":
                value = value.to(torch.promote_types(value.dtype, torch.float32))
            if name == "reference_logps":
                value = value.detach()
            object.__setattr__(self, name, torch.where(self.mask, value, filler))
        self._check()

    def _check(self) -> None:
        lowest = torch.where(self.mask, self.rewards, torch.inf).cummin(1).values
        before = F.pad(lowest[:, :-1], (1, 0), value=torch.inf)
        wrong = {
            "rewards must be finite": ~self.rewards.isfinite(),
            "rewards must not rise; sort the list by reward": self.mask & (self.rewards > before),
            "lengths must be at least 1 token; drop empty responses": self.lengths < 1,
        }
        # One look at the device for all checks; the reason is sought only where there is one.
        broken = torch.stack(list(wrong.values())).any()
        for rule, where in wrong.items() if broken else ():
            if where.any():
                row = int(where.any(1).nonzero()[0, 0])
                values = (self.lengths if rule.startswith("lengths") else self.rewards)[row][self.mask[row]]
                raise UserError(f"ListBatch row {row}: {rule}; found {values.tolist()}")

    @property
    def dtype(self) -> torch.dtype:
        """That of the log-probabilities, and so of the losses."""
        return self.policy_logps.dtype

    def gamma(self, beta: float) -> Tensor:
        """β (log π − log π_ref), (B, m); 0 on padding."""
        return beta * (self.policy_logps - self.reference_logps)

    def first(self) -> Tensor:
        """(B, m) bool, True on each list's first (best) response."""
        return self.mask & (self.mask.cumsum(1) == 1)

    def preferred(self) -> Tensor:
        """(B, m, m) bool, True at [b, i, j] where response i has a strictly higher reward than j."""
        both = self.mask[:, :, None] & self.mask[:, None, :]
        return both & (self.rewards[:, :, None] > self.rewards[:, None, :])


@dataclass(frozen=True)
class Objective:
    """A loss with its parameters bound. Made by `build`."""

    name: str
    params: dict[str, Any]
    loss: Loss
    reference_value: Loss

    def __call__(self, batch: ListBatch) -> Tensor:
        """Losses, (B,), in the dtype of the log-probabilities; not averaged."""
        return self.loss(batch, **self.params)

    def at_reference(self, batch: ListBatch) -> Tensor:
        """The losses (B,) that this batch has where policy and reference agree, as at step 0.

        Counted from rewards and mask in closed form, without the forward pass, so that training can check
        its first step against it: log 2 for a pair, log m (contrastive), C(m,2) log 2 (lambdarank), log m!
        (listmle), less where rewards tie. Holds no gradient.
        """
        return self.reference_value(batch, **self.params).to(batch.dtype).detach()


_REGISTRY: dict[str, Objective] = {}


def register(*names: str, at_reference: Loss) -> Callable[[Loss], Loss]:
    """Add `loss(batch, *, ...) -> (B,)` under its name and aliases; keyword parameters become its settings.

    The annotation of each parameter says which values it takes (`Positive`, `Literal[...]`).
    `at_reference` has the same signature and returns what `Objective.at_reference` promises.
    """

    def add(loss: Loss) -> Loss:
        for name in names:
            _REGISTRY[name] = Objective(names[0], {}, loss, at_reference)
        return loss

    return add


def build(name: str, **params: Any) -> Objective:
    """The objective called `name`. Raises UserError for an unknown name, parameter or value."""
    if name not in _REGISTRY:
        raise UserError(f"objective: unknown name {_unknown(name, _REGISTRY)}")
    entry = _REGISTRY[name]
    accepted = inspect.signature(entry.loss).parameters.values()
    values = {p.name: p.default for p in accepted if p.kind is p.KEYWORD_ONLY}
    types = get_type_hints(entry.loss, include_extras=True)
    for key, value in params.items():
        if key not in values:
            raise UserError(f"objective {name}: unknown parameter {_unknown(key, values)}")
        try:
            values[key] = TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"objective {name}: {key}: {reason}, found {value!r}") from None
    return replace(entry, params=values)


def _unknown(word: str, known: dict[str, Any]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"{word!r}{hint}; known: {', '.join(sorted(known))}"


def _pairwise_at_reference(batch: ListBatch, *, beta: float) -> Tensor:
    highest = batch.rewards.where(batch.mask, -torch.inf).amax(1)
    lowest = batch.rewards.where(batch.mask, torch.inf).amin(1)
    return (highest > lowest).to(batch.dtype) * math.log(2)


@register("pairwise", "dpo", at_reference=_pairwise_at_reference)
def pairwise(batch: ListBatch, *, beta: Positive = 0.1) -> Tensor:
    """−log σ(γ_1 − γ_2), (B,): DPO, Bradley-Terry. Raises UserError unless every list has two responses."""
    entries = batch.mask.sum(1)
    if (entries != 2).any():
        row = int((entries != 2).nonzero()[0, 0])
        found = f"found {int(entries[row])} in row {row}"
        raise UserError(f"objective pairwise: expected 2 responses per list, {found}; use another objective")
    gamma = batch.gamma(beta)
    first = batch.first()
    last = batch.mask & ~first
    strict = _pick(batch.rewards, first) > _pick(batch.rewards, last)
    return torch.where(strict, -F.logsigmoid(_pick(gamma, first) - _pick(gamma, last)), 0)


def _pick(values: Tensor, where: Tensor) -> Tensor:
    """The one value per row, (B,), that `where` (B, m) marks; 0 in a row without a mark."""
    return torch.where(where, values, 0).sum(1)


def _contrastive_at_reference(batch: ListBatch, *, beta: float) -> Tensor:
    highest = batch.rewards.where(batch.mask, -torch.inf).amax(1, keepdim=True)
    return (batch.mask & (batch.rewards < highest)).sum(1, dtype=batch.dtype).log1p()


@register("contrastive", at_reference=_contrastive_at_reference)
def contrastive(batch: ListBatch, *, beta: Positive = 0.1) -> Tensor:
    """−log softmax of the first response among itself and all with a strictly lower reward, (B,)."""
    gamma = batch.gamma(beta)
    first = batch.first()
    positive = _pick(gamma, first)
    worse = batch.mask & (batch.rewards < _pick(batch.rewards, first)[:, None])
    negatives = torch.where(worse, gamma, -torch.inf)
    # The positive is always in the sum: no row of −inf alone, so no NaN gradient.
    return torch.cat([positive[:, None], negatives], dim=1).logsumexp(1) - positive


def _lambdarank_at_reference(batch: ListBatch, *, beta: float, weight: str) -> Tensor:
    n = batch.mask.sum(1, dtype=batch.dtype)
    if weight == "none":
        both = batch.mask[:, :, None] & batch.mask[:, None, :]
        tied = (both & (batch.rewards[:, :, None] == batch.rewards[:, None, :])).sum((1, 2))
        return (n * n - tied) / 2 * math.log(2)
    # Σ_{i<j} (g_i − g_j)(d_i − d_j) = n Σ g d − Σ g Σ d: gains and discounts both fall with the rank.
    gains, discounts = _gains(batch), torch.where(batch.mask, _discounts(batch, batch.mask.cumsum(1)), 0)
    ideal = (gains * discounts).sum(1)
    pairs = n * ideal - gains.sum(1) * discounts.sum(1)
    return torch.where(ideal > 0, pairs / ideal, 0) * math.log(2)


@register("lambdarank", at_reference=_lambdarank_at_reference)
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


def _listmle_at_reference(batch: ListBatch, *, beta: float) -> Tensor:
    return torch.lgamma(batch.mask.sum(1, dtype=batch.dtype) + 1)


@register("listmle", at_reference=_listmle_at_reference)
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
