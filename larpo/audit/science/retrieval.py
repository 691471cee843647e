"""Dense retrieval made again: vectors of some texts by the recorded model, and from the vectors all that follows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from larpo import tables
from larpo.audit.compare.rules import VECTOR
from larpo.audit.compare.values import close, contrast, different_rows, different_values
from larpo.audit.open import RECORDS, AuditedRun
from larpo.audit.results import Check, conclude
from larpo.config.sections import RetrievalParams
from larpo.errors import ParameterError, UserError
from larpo.report.read import read_json
from larpo.retrieval.corpus import read_passages, read_queries
from larpo.retrieval.encoder import Encoder
from larpo.retrieval.index import ids_file, nearest, read_vectors, shards
from larpo.retrieval.scores import judge_hits
from larpo.sources import hub

PART = "science"
TIED = 16
"""Further passages of a query that are looked at where another one has a rank: as near a one may have it."""
HITS = ["hit_answer", "hit_gold"]
Embedded = tuple[str, int, np.ndarray, str]
"""A drawn vector: its file, its row, itself, and the text that it is of."""


def vectors(run: AuditedRun, name: str) -> Check:
    """Ids of all passages against the corpus, and vectors of passages and queries by lot against their texts."""
    failures, behind, count, largest = [], [], 0, 0.0
    for key, params in run.params.retrieval.items():
        if absent := _absent(params.corpus, params.queries):
            behind += absent
            continue
        lines, passages = _passages(run, key, params)
        failures += lines
        lines, queries = _queries(run, key, params)
        failures += lines
        try:
            encoder, recorded = _encoder(key, params)
        except ParameterError as error:
            behind.append(str(error))
            continue
        lines = []
        for drawn, embed in ((passages, encoder.passages), (queries, encoder.queries)):
            apart, off = _apart(drawn, embed([text for *_, text in drawn]) if drawn else np.empty((0, 0)))
            lines += apart
            largest = max(largest, off)
            count += len(drawn)
        if lines and not recorded:  # a version is a claim, and said once it matters
            behind.append(f"embed@{key}: other vectors are made here, by another {params.model} than the one recorded")
        else:
            failures += lines
    detail = f"{count} vectors, by lot, embedded again; largest difference {largest:.2g}, allowed {VECTOR:g}"
    return conclude(PART, name, count, detail, failures, list(dict.fromkeys(behind)))


def _absent(*data: str) -> list[str]:
    return [f"{path} is not here, and nothing is fetched" for path in data if not Path(path).exists()]


def _encoder(key: str, params: RetrievalParams) -> tuple[Encoder, bool]:
    """The retriever, and whether it is the one that the node `inputs` recorded.

    Raises
    ------
    ParameterError
        It is not here.
    """
    records = json.loads(Path(f"{RECORDS}/retrieval/{key}.json").read_text("utf-8"))
    with hub.pinned(records):
        encoder = Encoder(params, f"retrieval.{key}.model")
    here = encoder.checkpoint.record()
    (there,) = (r for r in records if r["key"] == f"retrieval.{key}.model")
    return encoder, here["kind"] == "hub" or all(here[fact] == there[fact] for fact in ("kind", "version", "hash"))


def _passages(run: AuditedRun, key: str, params: RetrievalParams) -> tuple[list[str], list[Embedded]]:
    """Lines on shards that are not the corpus's, and passages by lot: as many of those that are a query's first hit,
    on which Recall@N rests, as of the others."""
    folder = Path(f"data/embed/{key}")
    parts = sorted(folder.glob("passages-*.npy"))
    ids = [json.loads(ids_file(part).read_text("utf-8")) for part in parts]
    found = tables.read("retrievals", f"data/evaluate/retrieval-{key}.parquet")
    first = {
        passage for hit in HITS for passage in found[found[hit].eq(True)].drop_duplicates("query_id")["passage_id"]
    }
    strata: tuple[list, list] = ([], [])
    for i, names in enumerate(ids):
        for row, passage in enumerate(names):
            strata[passage in first].append((i, row))
    chosen = set(run.draw.some(f"{folder}/passages", strata))
    failures, drawn, read, shard = [], [], 0, -1
    for shard, passages in enumerate(shards(read_passages(params.corpus), params.shard_size)):
        read += len(passages)
        if shard >= len(parts):
            continue
        path, expected = parts[shard], [p.id for p in passages]
        if ids[shard] != expected:
            failures.append(f"{ids_file(path)}: {contrast(ids[shard], expected, ('is', 'in the corpus'))}")
        recorded = read_vectors(path)
        if len(recorded) != len(expected):
            failures.append(f"{path}: {len(recorded)} vectors, of {len(expected)} passages in the corpus")
        here = [row for row in range(min(len(recorded), len(expected))) if (shard, row) in chosen]
        drawn += [(str(path), row, recorded[row], passages[row].whole) for row in here]
    if shard + 1 != len(parts):
        failures.append(f"{folder}: {len(parts)} shards, the {read} passages of {params.corpus} make {shard + 1}")
    return failures, drawn


def _queries(run: AuditedRun, key: str, params: RetrievalParams) -> tuple[list[str], list[Embedded]]:
    path = f"data/embed/{key}/queries.npy"
    recorded, texts = read_vectors(path), read_queries(params.queries)["question"].tolist()
    if len(recorded) != len(texts):
        return [f"{path}: {len(recorded)} vectors, of {len(texts)} queries in {params.queries}"], []
    rows = sorted(run.draw.some(path, [range(len(texts))]))
    return [], [(path, row, recorded[row], texts[row]) for row in rows]


def _apart(drawn: list[Embedded], again: np.ndarray) -> tuple[list[str], float]:
    """Lines on vectors that differ from those made again, and the largest difference of a number."""
    lines, largest = [], 0.0
    for (path, row, recorded, _), vector in zip(drawn, again, strict=True):
        if recorded.shape != vector.shape:
            lines.append(f"{path}, row {row}: {len(recorded)} numbers, embedded again {len(vector)}")
            continue
        off = np.abs(recorded - vector)
        at, largest = int(off.argmax()), max(largest, float(off.max()))
        if not off[at] <= VECTOR:
            lines.append(f"{path}, row {row}: number {at} is {recorded[at]:.6f}, embedded again {vector[at]:.6f}")
    return lines, largest


def nearest_passages(run: AuditedRun, name: str) -> Check:
    """Every row of the retrievals from the recorded vectors, its hits from the texts, and what the metrics say of the
    retriever."""
    failures, behind, count = [], [], 0
    for key, params in run.params.retrieval.items():
        stem, folder = f"data/evaluate/retrieval-{key}", Path(f"data/embed/{key}")
        recorded = tables.read("retrievals", f"{stem}.parquet")
        if absent := _absent(params.queries):
            behind += absent
            continue
        queries = read_queries(params.queries)
        again, passages = nearest(folder, queries["query_id"], params, max(params.ns))
        again = _ties_kept(recorded, again, folder, queries, params)
        failures += different_rows(f"{stem}.parquet", recorded, again, list(again.columns), VECTOR)
        told: dict[str, Any] = {"retriever": params.model, "passages": passages}
        metrics = read_json(f"{stem}.json")
        failures += different_values(f"{stem}.json", {fact: metrics.get(fact) for fact in told}, told)
        if absent := _absent(params.corpus):
            behind += absent
        else:
            failures += _other_hits(f"{stem}.parquet", recorded, queries, params)
        count += len(recorded)
    detail = f"{count} rows searched again among the recorded vectors, and judged again"
    return conclude(PART, name, count, detail, failures, list(dict.fromkeys(behind)))


def _ties_kept(
    recorded: pd.DataFrame, again: pd.DataFrame, folder: Path, queries: pd.DataFrame, params: RetrievalParams
) -> pd.DataFrame:
    """`again` with the recorded passages where others are as near: which comes first depends on the processor, whose
    units sum in different orders (measured: similarities moved by 1.8e-7)."""
    if len(recorded) != len(again):
        return again
    pairs = ["query_id", "passage_id"]
    other = (recorded["passage_id"] != again["passage_id"]) & ~recorded.duplicated(pairs)
    if not other.any():
        return again
    total = sum(len(read_vectors(part)) for part in folder.glob("passages-*.npy"))
    try:
        wide, _ = nearest(folder, queries["query_id"], params, min(max(params.ns) + TIED, total))
    except UserError:  # a compressed index that searches few lists has no more
        wide = again
    known = dict(zip(zip(wide["query_id"], wide["passage_id"], strict=True), wide["similarity"], strict=True))
    for row in recorded.index[other]:
        similarity = known.get(tuple(recorded.loc[row, pairs]))
        if similarity is not None and close(again.at[row, "similarity"], similarity, VECTOR):
            again.at[row, "passage_id"] = recorded.at[row, "passage_id"]
    return again


def _other_hits(path: str, recorded: pd.DataFrame, queries: pd.DataFrame, params: RetrievalParams) -> list[str]:
    """Lines on rows whose hits are judged otherwise; passages and queries that nobody knows are named already."""
    needed = set(recorded["passage_id"])
    texts = {p.id: p.text for p in read_passages(params.corpus) if p.id in needed}
    known = recorded[recorded["passage_id"].isin(texts) & recorded["query_id"].isin(queries["query_id"])]
    return different_rows(path, known, judge_hits(known, queries, texts), HITS)
