"""The scored responses that lists are made of, without their texts and tokens: a few numbers per response.

Two responses to one prompt are identical when their token ids are. Of the ids only a hash of 128 bits is kept, for the
ids of a large run do not fit into memory beside each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from larpo import tables

AS_THEY_ARE = ["prompt_id", "response_id", "iteration", "temperature", "reward"]
COLUMNS = [*AS_THEY_ARE, "token_ids", "finish_reason", "origin", "correct"]
BATCH = 1 << 13  # responses whose tokens are hashed at once


@dataclass(frozen=True)
class Pool:
    """Scored responses of one or more iterations.

    Attributes
    ----------
    rows
        One per response: prompt (place of its id among `prompts`), response_id, iteration, temperature, n_tokens,
        tokens (equal for equal token ids), cut (whether it was cut off), gold, reward, correct (0, 1, or NaN: not
        verifiable).
    prompts
        (P,) prompt ids in rising order; some may have no row.
    """

    rows: pd.DataFrame
    prompts: np.ndarray

    def of(self, iterations: list[int]) -> "Pool":
        """The responses of these iterations alone."""
        return Pool(self.rows[self.rows["iteration"].isin(iterations)], self.prompts)


def read_pool(path: str | Path, empty: bool = False) -> Pool:
    """The pool of a `candidates` table, one row group in memory at a time."""
    return pool_of(tables.scan("candidates", path, COLUMNS, empty))


def pool_of(parts: Iterable[pa.Table]) -> Pool:
    """The pool of a `candidates` table in parts that hold COLUMNS."""
    weights = Weights()
    batches = (batch for part in parts for batch in part.to_batches(max_chunksize=BATCH) or [part])
    rows = pd.concat([_rows(batch, weights) for batch in batches], ignore_index=True)
    tokens = rows.groupby(["hash_0", "hash_1", "n_tokens"], sort=False).ngroup()
    place, prompts = pd.factorize(rows["prompt_id"], sort=True)
    rows = rows.drop(columns=["prompt_id", "hash_0", "hash_1"]).assign(prompt=place, tokens=tokens)
    return Pool(rows, prompts.to_numpy(dtype=object))


class Weights:
    """Two multilinear hashes modulo 2^64 (Carter and Wegman): Σ_i w_i x_i with fixed random w. Two lists of one length
    share both with a probability below 2^-66, and below 2^-88 with ids below 2^20."""

    def __init__(self) -> None:
        self.values = np.empty((2, 0), np.uint64)

    def hashes(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(2, N) uint64 of N lists that lie one behind the other in `ids`."""
        longest = int(lengths.max(initial=0))
        if longest > self.values.shape[1]:
            self.values = np.stack([np.random.PCG64(seed).random_raw(2 * longest) for seed in (0, 1)])
        ends = np.cumsum(lengths)
        position = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)
        sums = np.zeros((2, len(ids) + 1), np.uint64)
        for values, row in zip(self.values, sums, strict=True):
            np.cumsum(values[position] * ids.astype(np.uint64), out=row[1:])
        return sums[:, ends] - sums[:, ends - lengths]


def _rows(part: pa.RecordBatch | pa.Table, weights: Weights) -> pd.DataFrame:
    lists = part["token_ids"]
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    hashes = weights.hashes(pc.list_flatten(lists).to_numpy(), lengths)
    kept = part.select(AS_THEY_ARE).to_pandas()
    return kept.assign(
        n_tokens=lengths,
        hash_0=hashes[0],
        hash_1=hashes[1],
        cut=pc.equal(part["finish_reason"], "length").to_numpy(zero_copy_only=False),
        gold=pc.equal(part["origin"], "gold").to_numpy(zero_copy_only=False),
        correct=part["correct"].cast(pa.float64()).to_numpy(zero_copy_only=False),
    )
