"""Node `embed@NAME`: vectors of a retrieval corpus and its queries, shard by shard."""

import os
import time

import numpy as np

from larpo.retrieval.corpus import read_passages, read_queries
from larpo.retrieval.encoder import Encoder
from larpo.retrieval.index import shards
from larpo.workspace.files import rename, write_json
from larpo.workspace.progress import say
from tasks.frame.files import is_whole_array, read_json_part
from tasks.frame.node import Node, command


def main(name: str) -> None:
    """Write data/embed/NAME: passages-*.npy with their ids-*.json, and queries.npy."""
    with Node("embed", name) as node:
        wanted = node.params.retrieval[name]
        queries = read_queries(wanted.queries)
        parts = node.scratch / "parts"
        made = node.place("embed")
        if made.is_dir() and not parts.exists():
            os.replace(made, parts)  # killed after the last shard, before they were published
        parts.mkdir(exist_ok=True)
        encoder, count, start = None, 0, time.perf_counter()
        for i, passages in enumerate(shards(read_passages(wanted.corpus), wanted.shard_size)):
            path = parts / f"passages-{i:06d}.npy"
            count += len(passages)
            if is_whole_array(path) and read_json_part(parts / f"ids-{i:06d}.json") is not None:
                say(f"{node.stage}: resuming, shard {i} is there")
                continue
            encoder = encoder or Encoder(wanted)
            write_json(parts / f"ids-{i:06d}.json", [p.id for p in passages])
            save(encoder.passages([p.whole for p in passages]), path)
            rate = count / (time.perf_counter() - start)
            say(f"{node.stage}: {count} passages, {rate:.0f} passages/s")
        encoder = encoder or Encoder(wanted)
        save(encoder.queries(queries["question"].tolist()), parts / "queries.npy")
        if encoder.cut:
            limit = encoder.model.max_seq_length
            say(f"{node.stage}: {encoder.cut} texts are longer than {limit} tokens; their ends are cut")
        node.note(cut_since_start=encoder.cut)  # shards that were there when a stopped node went on are not looked at
        os.replace(parts, node.out("embed"))
        node.rows(read=count + len(queries), written=count + len(queries))


def save(vectors: np.ndarray, path) -> None:
    """Write so that the file is there completely or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as f:
        np.save(f, vectors)
    rename(temporary, path)


if __name__ == "__main__":
    command(main)
