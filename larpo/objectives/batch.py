"""The input of every objective: a batch of ranked lists with their log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from larpo.errors import UserError

COLUMNS = {"policy_logps": 0, "reference_logps": 0, "lengths": 1, "rewards": 0, "mask": False}
"""The (B, m) tensors of a batch, and what replaces their padding."""


@dataclass(frozen=True)
class ListBatch:
    """B ranked lists, padded to m columns. All tensors are (B, m) but the last.

    policy_logps     log π(y|x), nats, summed over the response's tokens; the gradient flows through it
    reference_logps  log π_ref(y|x), nats, summed; a constant (detached)
    lengths          response tokens, at least 1
    rewards          finite, any sign, never rising from one column to the next
    mask             bool; False on padding, which may sit in any column
    mismatched       optional (B,): log π(y'|x) − log π_ref(y'|x), nats, of one response y' per list that was
                     given to another prompt; a constant (detached). `kto` needs it

    Log-probabilities and rewards below float32 are raised to float32; float64 stays. Padding may hold
    anything, NaN included: it is replaced here (1 in lengths, 0 elsewhere), before any arithmetic, so that
    it reaches neither a loss nor a gradient. Raises UserError for tensors that break these rules.
    """

    policy_logps: Tensor
    reference_logps: Tensor
    lengths: Tensor
    rewards: Tensor
    mask: Tensor
    mismatched: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in COLUMNS}
        if len(set(shapes.values())) > 1 or len(shapes["mask"]) != 2:
            raise UserError(f"ListBatch: expected five tensors of one shape (B, m), found {shapes}")
        if self.mask.dtype != torch.bool:
            raise UserError(f"ListBatch: mask must be torch.bool, found {self.mask.dtype}; use mask.bool()")
        for name in ("policy_logps", "reference_logps", "lengths", "rewards"):
            value = getattr(self, name)
            if name != "lengths":
                value = _at_least_float32(value)
            if name == "reference_logps":
                value = value.detach()
            object.__setattr__(self, name, torch.where(self.mask, value, COLUMNS[name]))
        if self.mismatched is not None:
            if self.mismatched.shape != self.mask.shape[:1]:
                found = tuple(self.mismatched.shape)
                raise UserError(
                    f"ListBatch: mismatched: expected one value per list, ({len(self.mask)},), found {found}"
                )
            object.__setattr__(self, "mismatched", _at_least_float32(self.mismatched).detach())
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

    def at_reference(self) -> ListBatch:
        """The same lists with the policy's log-probabilities replaced by the reference's, as at step 0."""
        mismatched = None if self.mismatched is None else torch.zeros_like(self.mismatched)
        return replace(self, policy_logps=self.reference_logps, mismatched=mismatched)

    def log_ratios(self) -> Tensor:
        """log π − log π_ref, (B, m); 0 on padding."""
        return self.policy_logps - self.reference_logps

    def gamma(self, beta: float) -> Tensor:
        """β (log π − log π_ref), (B, m); 0 on padding."""
        return beta * self.log_ratios()

    def token_means(self, sums: Tensor) -> Tensor:
        """Sums over the responses' tokens, (B, m), divided by the numbers of tokens."""
        return sums / self.lengths

    def first(self) -> Tensor:
        """(B, m) bool, True on each list's first (best) response."""
        return self.mask & (self.mask.cumsum(1) == 1)

    def preferred(self) -> Tensor:
        """(B, m, m) bool, True at [b, i, j] where response i has a strictly higher reward than j."""
        both = self.mask[:, :, None] & self.mask[:, None, :]
        return both & (self.rewards[:, :, None] > self.rewards[:, None, :])

    def strict(self) -> Tensor:
        """(B,) bool, True for lists whose rewards are not all equal."""
        highest = self.rewards.where(self.mask, -torch.inf).amax(1)
        return highest > self.rewards.where(self.mask, torch.inf).amin(1)


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def pick(values: Tensor, where: Tensor) -> Tensor:
    """The one value per row, (B,), that `where` (B, m) marks; 0 in a row without a mark."""
    return torch.where(where, values, 0).sum(1)


def chosen_and_rejected(batch: ListBatch, objective: str) -> tuple[Tensor, Tensor]:
    """(B, m) bool each: where the two responses of every list stand, the better first.

    Raises UserError, in the name of `objective`, unless every list has exactly two.
    """
    entries = batch.mask.sum(1)
    if (entries != 2).any():
        row = int((entries != 2).nonzero()[0, 0])
        found = f"found {int(entries[row])} in row {row}"
        raise UserError(
            f"objective {objective}: expected 2 responses per list, {found}; "
            "use lists.recipe=best_worst, or another objective"
        )
    chosen = batch.first()
    return chosen, batch.mask & ~chosen
