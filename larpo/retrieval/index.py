"""Shards of vectors, and the passages nearest to each query: exactly, or by a compressed index.

The corpus is read, embedded and searched in shards, so memory does not grow with it.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from larpo.config.sections import RetrievalParams
from larpo.errors import UserError, one_line

T = TypeVar("T")


def shards(passages: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` passages, the last one shorter."""
    while part := list(islice(passages, size)):
        yield part


def read_vectors(path: str | Path) -> np.ndarray:
    """(n, d) float32 vectors of a .npy file; one of Python objects would be a pickle, and is never loaded."""
    try:
        vectors = np.load(path, allow_pickle=False)
        if not (isinstance(vectors, np.ndarray) and vectors.dtype == np.float32 and vectors.ndim == 2):
            raise ValueError("expected a table of float32 numbers")
        if not np.isfinite(vectors).all():
            raise ValueError("expected finite numbers")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable ({one_line(error)[:160]}); run `dvc repro --force` on embed") from None
    return vectors


def search(
    queries: np.ndarray, parts: list[Path], sizes: list[int], top: int, params: RetrievalParams
) -> tuple[np.ndarray, np.ndarray]:
    """The `top` passages of each query over all shards.

    Parameters
    ----------
    queries
        (Q, d) float32.
    parts, sizes
        Per shard its (n, d) .npy file and n.

    Returns
    -------
    (Q, top) similarities in falling order and (Q, top) positions in the corpus. `flat` searches shard after
    shard and merges, exactly; `ivf_pq` trains on the first shard (nlist, m, nbits, nprobe in `index_options`) and
    holds codes of m · nbits / 8 bytes per passage.
    """
    import faiss

    offsets = np.cumsum([0, *sizes])
    if top > offsets[-1]:
        raise UserError(f"params.yaml: retrieval: ns: {top} asked for, the corpus has {offsets[-1]} passages")
    dimension = queries.shape[1]
    if params.index == "ivf_pq":
        options = {"nlist": 4096, "m": 64, "nbits": 8, "nprobe": 64} | params.index_options
        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(dimension),
            dimension,
            options["nlist"],
            options["m"],
            options["nbits"],
            faiss.METRIC_INNER_PRODUCT,
        )
        index.nprobe = options["nprobe"]
        index.train(read_vectors(parts[0]))
        for part in parts:
            index.add(read_vectors(part))
        similar, places = index.search(queries, top)
        if (places < 0).any():
            raise UserError(
                "params.yaml: retrieval: index_options.nprobe: too few lists are searched for max(ns); raise it"
            )
        return similar, places
    similar = np.empty((len(queries), 0), dtype=np.float32)
    places = np.empty((len(queries), 0), dtype=np.int64)
    for part, offset in zip(parts, offsets, strict=False):
        index = faiss.IndexFlatIP(dimension)
        index.add(read_vectors(part))
        s, p = index.search(queries, min(top, index.ntotal))
        similar, places = np.hstack([similar, s]), np.hstack([places, p + offset])
        # Ties go to the earlier passage, whatever the shards.
        order = np.lexsort((places, -similar), axis=1)[:, :top]
        similar, places = np.take_along_axis(similar, order, 1), np.take_along_axis(places, order, 1)
    return similar, places


def nearest(folder: Path, queries: Sequence[str], params: RetrievalParams, top: int) -> tuple[pd.DataFrame, int]:
    """The `top` passages of each of `queries`, ids in the order of their vectors in `folder`: rows of query_id, rank,
    passage_id and similarity; and how many passages there are."""
    parts = sorted(folder.glob("passages-*.npy"))
    sizes = [len(read_vectors(part)) for part in parts]
    similar, places = search(read_vectors(folder / "queries.npy"), parts, sizes, top, params)
    found = pd.DataFrame(
        {
            "query_id": np.repeat(np.asarray(queries, dtype=object), top),
            "rank": np.tile(np.arange(top), len(queries)),
            "passage_id": ids_at(places.ravel(), parts, sizes),
            "similarity": similar.ravel().astype(float),
        }
    )
    return found, sum(sizes)


def ids_file(part: Path) -> Path:
    """Where the ids of a shard's passages are."""
    return part.with_name(part.stem.replace("passages", "ids") + ".json")


def ids_at(places: np.ndarray, parts: list[Path], sizes: list[int]) -> np.ndarray:
    """Ids of the passages at (n,) positions in the corpus; one shard's ids in memory at a time."""
    found = np.empty(len(places), dtype=object)
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        here = np.flatnonzero((places >= start) & (places < start + size))
        if len(here):
            ids = json.loads(ids_file(part).read_text("utf-8"))
            found[here] = [ids[i] for i in places[here] - start]
        start += size
    return found
