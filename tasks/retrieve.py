"""Node `retrieve@NAME`: the nearest passages of each query, and Recall@N."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from larpo import tables
from larpo.retrieval import read_passages, read_queries, search
from larpo.retrieval_scores import judge_hits, recall_at
from tasks.node import Node, command, load_params, write_json


def main(name: str) -> None:
    """Write data/evaluate/retrieval-NAME.parquet and its Recall@N as .json."""
    params = load_params()
    wanted = params.retrieval[name]
    vectors, stem = f"data/embed/{name}", f"data/evaluate/retrieval-{name}"
    with Node(
        "retrieve", name, params, uses=[f"retrieval.{name}"], inputs=[wanted.corpus, wanted.queries, vectors],
        outputs=[f"{stem}.parquet", f"{stem}.json"], manifest=f"{stem}.manifest.json",
    ) as node:  # fmt: skip
        queries = read_queries(wanted.queries)
        parts = sorted(Path(vectors).glob("passages-*.npy"))
        ids = [json.loads(p.with_name(p.stem.replace("passages", "ids") + ".json").read_text()) for p in parts]
        top = max(wanted.ns)
        similar, places = search(np.load(f"{vectors}/queries.npy"), parts, ids, top, wanted)
        flat = np.concatenate([np.asarray(part, dtype=object) for part in ids])
        found = pd.DataFrame(
            {
                "query_id": np.repeat(queries["query_id"].to_numpy(), top),
                "rank": np.tile(np.arange(top), len(queries)),
                "passage_id": flat[places.ravel()],
                "similarity": similar.ravel().astype(float),
            }
        )
        needed = set(found["passage_id"])
        texts = {p.id: p.text for p in read_passages(wanted.corpus) if p.id in needed}
        found = judge_hits(found, queries, texts)
        tables.write(found, "retrievals", node.out(f"{stem}.parquet"))
        metrics = {"retriever": wanted.model, "passages": len(flat), **recall_at(found, wanted.ns)}
        write_json(node.out(f"{stem}.json"), metrics)
        node.rows(read=len(queries), written=len(found))


if __name__ == "__main__":
    command(main)
