"""Node `retrieve@NAME`: the nearest passages of each query, and Recall@N."""

from pathlib import Path

import numpy as np
import pandas as pd

from larpo import tables
from larpo.retrieval.corpus import read_passages, read_queries
from larpo.retrieval.index import ids_at, read_vectors, search
from larpo.retrieval.scores import judge_hits, recall_at
from larpo.workspace.files import write_json
from tasks.frame.node import Node, command


def main(name: str) -> None:
    """Write data/evaluate/retrieval-NAME.parquet and its Recall@N as .json."""
    with Node("retrieve", name) as node:
        wanted = node.params.retrieval[name]
        vectors = Path(node["embed"])
        queries = read_queries(wanted.queries)
        parts = sorted(vectors.glob("passages-*.npy"))
        sizes = [len(read_vectors(p)) for p in parts]
        top = max(wanted.ns)
        similar, places = search(read_vectors(vectors / "queries.npy"), parts, sizes, top, wanted)
        found = pd.DataFrame(
            {
                "query_id": np.repeat(queries["query_id"].to_numpy(), top),
                "rank": np.tile(np.arange(top), len(queries)),
                "passage_id": ids_at(places.ravel(), parts, sizes),
                "similarity": similar.ravel().astype(float),
            }
        )
        needed = set(found["passage_id"])
        texts = {p.id: p.text for p in read_passages(wanted.corpus) if p.id in needed}
        found = judge_hits(found, queries, texts)
        tables.write(found, "retrievals", node.out("evaluate", ".parquet"))
        metrics = {"retriever": wanted.model, "passages": sum(sizes), **recall_at(found, wanted.ns)}
        write_json(node.out("evaluate", ".json"), metrics)
        node.rows(read=len(queries), written=len(found))


if __name__ == "__main__":
    command(main)
