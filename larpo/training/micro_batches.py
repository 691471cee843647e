"""Micro-batches by tokens: what is in memory at once has at most so many, however long its examples are.

The step has the examples that it has with a fixed number at once, so its mean is the same to rounding. The longest come
first (what does not fit is seen at once), and all processes have equally many micro-batches, for a sharded model is
gathered once in each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Dataset, Sampler


@dataclass(frozen=True)
class Budget:
    """Examples of an optimizer step, over all processes, and tokens of a micro-batch at most; an example that has more
    stands alone."""

    per_step: int
    tokens: int


class Examples(Dataset):
    """What is trained on, dataclasses with a field `weight`; index -1 is a copy without weight, a list of indices their
    examples."""

    def __init__(self, examples: Sequence[Any]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int | list) -> Any:
        if isinstance(index, list):
            return [self[i] for i in index]
        return self.examples[index] if index >= 0 else replace(self.examples[0], weight=0.0)


class PaddedOrder(Sampler[int]):
    """The random order of a single process, then -1 until every one of several processes has equally many examples.

    Left to itself, Accelerate fills the last batches with examples of the first one, which would count twice.
    """

    def __init__(self, dataset: Dataset, seed: int, multiple: int):
        self.order = SeedableRandomSampler(dataset, data_seed=seed)
        self.padding = -len(dataset) % multiple

    def __len__(self) -> int:
        return len(self.order) + self.padding

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [-1] * self.padding

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)


class TokenBatches(Sampler[list[list[int]]]):
    """For every step of the same order one element per process: its micro-batches, each as indices of examples.

    Parameters
    ----------
    size
        Tokens that some examples have in memory together.
    """

    def __init__(
        self, dataset: Examples, seed: int, budget: Budget, processes: int, size: Callable[[Sequence[Any]], int]
    ):
        self.order = SeedableRandomSampler(dataset, data_seed=seed)
        self.dataset, self.budget, self.processes, self.size = dataset, budget, processes, size

    def __len__(self) -> int:
        return -(-len(self.order) // self.budget.per_step) * self.processes

    def __iter__(self) -> Iterator[list[list[int]]]:
        order = list(self.order)
        for start in range(0, len(order), self.budget.per_step):
            yield from self.shares(order[start : start + self.budget.per_step])

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def shares(self, step: list[int]) -> list[list[list[int]]]:
        """Each process's micro-batches: an example goes to the process that has the fewest tokens."""
        tokens = {i: self.size([self.dataset[i]]) for i in step}
        longest_first = sorted(step, key=lambda i: -tokens[i])
        shares: list[list[int]] = [[] for _ in range(self.processes)]
        for i in longest_first:
            min(shares, key=lambda share: sum(tokens[j] for j in share)).append(i)
        return equally_many(
            [[[share[j] for j in group] for group in self.grouped(self.dataset[share])] for share in shares]
        )

    def grouped(self, examples: Sequence[Any]) -> list[list[int]]:
        return within(examples, self.budget.tokens, self.size)


def within(examples: Sequence[Any], tokens: int, size: Callable[[Sequence[Any]], int]) -> list[list[int]]:
    """Indices of neighbours whose `size` together is at most `tokens`, or of one alone."""
    groups: list[list[int]] = []
    for i in range(len(examples)):
        if groups and size([examples[j] for j in (*groups[-1], i)]) <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def equally_many(shares: list[list[list[int]]]) -> list[list[list[int]]]:
    """As many micro-batches in every share: the fullest gives one up; else a copy without weight (-1) is one more."""
    most = max(map(len, shares))
    for share in shares:
        while len(share) < most:
            fullest = max(share, key=len, default=[-1])
            share.append([fullest.pop()] if len(fullest) > 1 else [-1])
    return shares
