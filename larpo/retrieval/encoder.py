"""Dense retrieval: a sentence encoder and an inner-product index over a passage corpus (Figure 2a of the paper).

The corpus is read, embedded and searched in shards, so memory does not grow with it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from larpo.config.sections import EncoderParams, RetrievalParams
from larpo.errors import UserError, one_line
from larpo.hashing import digest
from larpo.models.packages import installed


def _rows(path: str | Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a .jsonl or .jsonl.gz file, one at a time."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; expected {what}")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
                    yield f"{path}, line {number}", row
    except (ValueError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON lines ({' '.join(str(error).split())[:160]})") from None


@dataclass(frozen=True)
class Passage:
    id: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        return f"{self.title} {self.text}".strip()


def read_passages(path: str | Path) -> Iterator[Passage]:
    """Passages in the file's order: id, text, and title where there is one."""
    seen: set[str] = set()
    for where, row in _rows(path, "passages with id, title and text"):
        if row.get("id") is None or not isinstance(row.get("text"), str) or not row["text"].strip():
            raise UserError(f"{where}: expected an id and a non-empty text, found {str(row)[:80]}")
        key = str(row["id"])
        if key in seen:
            raise UserError(f"{where}: passage id {key!r} appears twice; expected each once")
        seen.add(key)
        yield Passage(key, str(row.get("title") or ""), row["text"])
    if not seen:
        raise UserError(f"{path}: no passages; expected rows with id, title and text")


def read_queries(path: str | Path) -> pd.DataFrame:
    """Queries: query_id, question, answers (list) and gold (list of passage ids, or None)."""
    rows = []
    for where, row in _rows(path, "queries with question and answers"):
        answers = row.get("answers", row.get("answer"))
        answers = [answers] if isinstance(answers, str) else answers
        question = row.get("question")
        if not isinstance(question, str) or not isinstance(answers, list) or not answers:
            raise UserError(f"{where}: expected a question and a list of answers, found {str(row)[:80]}")
        gold = row.get("gold")
        if gold is not None and not isinstance(gold, list):
            raise UserError(f"{where}: gold: expected a list of passage ids, found {str(gold)[:80]}")
        gold = None if gold is None else [str(g) for g in gold]
        rows.append((str(row.get("id", digest("query", question))), question, [str(a) for a in answers], gold))
    frame = pd.DataFrame(rows, columns=["query_id", "question", "answers", "gold"])
    if frame.empty:
        raise UserError(f"{path}: no queries; expected rows with question and answers")
    if (twice := frame["query_id"].duplicated()).any():
        raise UserError(f"{path}: query id {frame['query_id'][int(twice.to_numpy().argmax())]!r} appears twice")
    return frame


def model_source(name: str, where: str = "retrieval: model") -> str:
    """What sentence-transformers loads: a hub id, a folder, or the folder inside an installed package (`pypi:NAME`).
    `where` is the key that errors name."""
    kind, _, package = name.partition(":")
    if kind != "pypi":
        if name.startswith((".", "/")) and not Path(name).is_dir():
            raise UserError(f"params.yaml: {where}: folder {name} not found")
        return name
    found = [f for f in installed(package, where)[1] if f.name == "modules.json"]
    if len(found) != 1:
        raise UserError(f"params.yaml: {where}: package {package!r} carries no sentence-transformers model")
    return str(found[0].parent)


class Encoder:
    """A sentence-transformers model with its query and passage prefixes; unit vectors, so inner product is cosine."""

    def __init__(self, params: EncoderParams, where: str = "retrieval: model"):
        from sentence_transformers import SentenceTransformer

        options = {"revision": params.revision} if params.revision else {}
        try:
            self.model = SentenceTransformer(
                model_source(params.model, where),
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
                **options,
            )
        except Exception as error:  # noqa: BLE001 - as for every checkpoint (larpo.models.load.UNUSABLE)
            reason = one_line(error)[:160] or type(error).__name__
            raise UserError(f"params.yaml: {where}: cannot load {params.model!r} ({reason})") from None
        self.model.max_seq_length = params.max_length
        self.params = params

    def passages(self, passages: list[Passage]) -> np.ndarray:
        """(n, d) float32 unit vectors."""
        return self._encode([self.params.passage_prefix + p.whole for p in passages])

    def queries(self, questions: list[str]) -> np.ndarray:
        """(n, d) float32 unit vectors."""
        return self._encode([self.params.query_prefix + q for q in questions])

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = self.model.encode(
            texts,
            batch_size=self.params.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def shards(passages: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    """Lists of `size` passages, the last one shorter."""
    while part := list(islice(passages, size)):
        yield part


def read_vectors(path: str | Path) -> np.ndarray:
    """(n, d) float32 vectors of a .npy file; one of Python objects would be a pickle, and is never loaded."""
    try:
        found = np.load(path, allow_pickle=False)
        usable = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.ndim == 2
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable ({one_line(error)[:160]}); run `dvc repro --force` on embed") from None
    if not usable or not np.isfinite(found).all():
        raise UserError(f"{path}: expected a table of finite float32 numbers; run `dvc repro --force` on embed")
    return found


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
