"""Node `retrieve@NAME`: the nearest passages of each query, and Recall@N."""

from pathlib import Path

from larpo import tables
from larpo.retrieval.corpus import read_passages, read_queries
from larpo.retrieval.index import nearest
from larpo.retrieval.scores import judge_hits, recall_at
from larpo.workspace.files import write_json
from tasks.frame.node import Node, command


def main(name: str) -> None:
    """Write data/evaluate/retrieval-NAME.parquet and its Recall@N as .json."""
    with Node("retrieve", name) as node:
        wanted = node.params.retrieval[name]
        queries = read_queries(wanted.queries)
        found, passages = nearest(Path(node["embed"]), queries["query_id"], wanted, max(wanted.ns))
        needed = set(found["passage_id"])
        texts = {p.id: p.text for p in read_passages(wanted.corpus) if p.id in needed}
        found = judge_hits(found, queries, texts)
        tables.write(found, "retrievals", node.out("evaluate", ".parquet"))
        metrics = {"retriever": wanted.model, "passages": passages, **recall_at(found, wanted.ns)}
        write_json(node.out("evaluate", ".json"), metrics)
        node.rows(read=len(queries), written=len(found))


if __name__ == "__main__":
    command(main)
