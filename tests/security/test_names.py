"""No name becomes a path outside of data/: names of params, commands, studies, tables, archives and servers."""

import contextlib
import os
from pathlib import Path

import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from larpo.benchmarks.judge import JudgeClient
from larpo.config.judges import JudgeParams
from larpo.config.sections import BenchmarkName, IterationName, PolicyName, SFTName
from larpo.errors import UserError
from larpo.studies import load_study
from larpo.studies.spec import Name, Source
from larpo.workspace.clone import RUNS, free_name
from tests.bad_input.harness import invoke, snapshot, table

PARTS = [
    "..",
    ".",
    "/",
    "\\",
    "~",
    "x",
    "0",
    "-",
    "_",
    "\0",
    "\n",
    " ",
    "%2e%2e",
    "․․",
    "／",
    "é",
    "$HOME",
    "*",
    "|",
    ";",
]
HOSTILE = st.one_of(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join), st.text(max_size=40), st.just("x" * 5000)
)
EXAMPLES = (
    "../x",
    "/etc/passwd",
    "..",
    ".",
    "a/b",
    "a\0b",
    "a\nb",
    "",
    "-",
    "1\n",
    "C:\\x",
    "~root",
    "x" * 300,
    "１",
    "ａ",
)


def hostile(function):
    for name in EXAMPLES:
        function = example(name=name)(function)
    return settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])(
        given(name=HOSTILE)(function)
    )


@pytest.mark.parametrize("kind", [BenchmarkName, IterationName, PolicyName, SFTName, Name])
def test_names_of_params_are_names_of_files(kind):
    adapter = TypeAdapter(kind)

    @hostile
    def check(name: str) -> None:
        try:
            found = adapter.validate_python(name)
        except ValidationError:
            return
        assert found.isascii()
        assert len(found) <= 64
        assert os.path.basename(found) == found
        assert found not in ("", ".", "..")
        assert not set(found) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")

    check()


@hostile
def test_files_of_measures_lie_in_the_run(name: str):
    for file in (name, f"data/{name}", f"report/x/{name}.json"):
        with contextlib.suppress(ValidationError):
            found = Source(file=file, key="x").file.format(policy="0") if "{" not in file else "data/x"
            place = Path(os.path.normpath(Path("/run") / found))
            assert place.is_relative_to("/run/data") or place.is_relative_to("/run/report")


def test_studies_lie_in_studies(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "x.yaml").write_text("name: x")

    @hostile
    def check(name: str) -> None:
        with pytest.raises(UserError):
            load_study(tmp_path / "studies", name)

    check()


def test_judges_of_any_name_keep_their_replies_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    connections = openai.DefaultHttpxClient()  # reads the system's certificates: once, not for every name
    monkeypatch.setattr(openai, "DefaultHttpxClient", lambda **settings: connections)

    @hostile
    def check(name: str) -> None:
        client = JudgeClient(JudgeParams(model=name), tmp_path / "store")
        assert client.store.path.parent == tmp_path / "store"
        assert client.store.path.suffix == ".jsonl"
        client.store.add("key", {"model": name}, {"text": name})
        assert client.store.path.is_file()

    check()
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@hostile
def test_runs_of_any_name_lie_in_one_folder(name: str):
    found = free_name(".", name)
    assert os.path.normpath(RUNS / found) == str(RUNS / found)
    assert (RUNS / found).parent == RUNS
    assert len(found) <= 100


def test_commands_take_no_paths_for_names(workspace):
    """Every node that has a key, with a name that would lead elsewhere: nothing outside of the run is written."""
    before = snapshot()
    for node in (
        "prompts",
        "sample",
        "score",
        "candidates",
        "lists",
        "reference",
        "train",
        "sft",
        "embed",
        "retrieve",
        "best_of_n",
        "items",
    ):
        for name in ("../../x", "/tmp/x", "1/../1", "x" * 5000, "１"):
            status, said = invoke([node, name])
            assert status == 2, (node, name, said)
            assert len(said.strip().splitlines()) == 1
    for node in ("generate", "evaluate"):
        for name in (("../0", "held_out"), ("0", "../held_out"), ("/0", "held_out"), ("0/../0", "held_out")):
            status, said = invoke([node, *name])
            assert status == 2, (node, name, said)
    assert snapshot() == before
    assert [p.name for p in workspace.parent.iterdir()] == ["run"]


def test_ids_in_tables_are_no_paths(workspace):
    """Prompt and response ids are data alone: a run whose ids are paths writes where it always does."""
    table("data/prompts/1.parquet", lambda f: f.assign(prompt_id=[f"../../../x{i}/\0" for i in range(len(f))]))()
    before = set(workspace.parent.rglob("*"))
    status, said = invoke(["sample", "1"])
    assert status == 0, said
    assert invoke(["score", "1"])[0] == 0
    new = {p.relative_to(workspace).parts[0] for p in set(workspace.parent.rglob("*")) - before}
    assert new <= {"data", "scratch"}
