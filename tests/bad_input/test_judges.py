"""Judges that are not there, refuse, answer nonsense or hang: a real server on loopback, through the whole command."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.harness import Case, both, invoke, params, refused, rows
from tests.chat_server import ChatServer
from tests.conftest import ROOT

QUESTIONS = str(ROOT / "data/samples/questions")


def judge(url: str | None = None, **more: Any) -> Callable[[], None]:
    """A benchmark whose judge is at `url`."""
    asks = {"benchmark": "mixeval", "data": QUESTIONS, "judge": "j", "options": {"parser": "model"}}
    settings = {"model": "m", "base_url": url, "attempts": 1, "timeout": 0.5, "api_key_env": "SOME_JUDGES_KEY"} | more
    return params({"benchmarks.q": asks | {"generate": {"max_new_tokens": 4}}, "judges": {"j": settings}})


def asked() -> None:
    """Records, items and outputs of the benchmark, which the judge then reads."""
    for command in ("inputs", "items q", "generate 0 q"):
        status, said = invoke(command.split())
        assert status == 0, said


WRONG_SETTINGS = rows(
    ("no key", judge(), "generate 0 q", ("judges.j.api_key_env", "SOME_JUDGES_KEY is not set", "needs a key")),
    ("no key for a server elsewhere", judge("https://judge.example/v1"), "generate 0 q", ("judges.j.api_key_env",
      "https://judge.example/v1 needs a key")),
    ("an address that is none", judge("judge.example"), "items q", ("judges.j.base_url", "http://127.0.0.1:8000/v1")),
    ("a file as address", judge("file:///etc/passwd"), "items q", ("judges.j.base_url", "expected an address")),
    ("an address with a password", judge("https://me:hunter2@judge.example/v1"), "items q", ("judges.j.base_url",
      "without a name and a password")),
    ("an address with a wrong port", judge("http://127.0.0.1:99999/v1"), "items q", ("judges.j.base_url",)),
    ("a key among the options", judge(options={"extra_headers": {"Authorization": "Bearer x"}}), "items q",
      ("judges.j.options", "'extra_headers' cannot be set here", "environment")),
    ("no time at all", judge(timeout=0), "items q", ("judges.j.timeout", "greater than 0")),
    ("no attempts", judge(attempts=0), "items q", ("judges.j.attempts",)),
)  # fmt: skip


@WRONG_SETTINGS
def test_wrong_settings(workspace, monkeypatch, case: Case):
    monkeypatch.delenv("SOME_JUDGES_KEY", raising=False)
    assert "hunter2" not in refused(case)


FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "401": ({"status": 401, "message": "bad key"}, ("judges.j", "401", "bad key")),
    "404, wrong model": ({"status": 404, "message": "no such model"}, ("judges.j", "refuses 'm'", "404", "no such")),
    "always 500": ({"status": 500}, ("judge j", "of 28 requests failed at each of 1 attempts", "run again")),
    "always 429": ({"status": 429, "retry_after": 0.01}, ("judge j", "requests failed", "run again")),
    "a page in place of JSON": ({"body": "<html>log in</html>"}, ("judge j", "requests failed")),
    "JSON that is no completion": ({"body": "[]"}, ("judge j", "requests failed")),
    "a completion without choices": ({"body": '{"choices": []}'}, ("judge j", "requests failed")),
    "null": ({"body": "null"}, ("judge j", "requests failed")),
    "nested without end": ({"body": "[" * 100_000}, ("judge j", "requests failed")),
    "hangs": ({"sleep": 3}, ("judge j", "requests failed", "timed out")),
    "drops the connection": ({"drop": True}, ("judge j", "requests failed", "Connection error")),
    "steers the terminal": ({"status": 400, "message": "a\x1b[2J\r\nerror: b"}, ("judges.j", "400", "a[2J error: b")),
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory, finished_project):
    """A finished run with the questions' items and outputs, to copy."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    folder.mkdir()
    shutil.copy(finished_project.folder / "params.yaml", folder)
    shutil.copytree(finished_project.folder / "data", folder / "data")
    before = os.getcwd()
    os.chdir(folder)
    try:
        both(judge("http://127.0.0.1:1/v1"), asked)()
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_answers(ready, monkeypatch, name):
    monkeypatch.chdir(ready)
    monkeypatch.delenv("LARPO_JUDGEMENTS", raising=False)
    monkeypatch.setenv("SOME_JUDGES_KEY", "k")
    fault, words = FAULTS[name]
    start = time.monotonic()
    with ChatServer(lambda body: "?", faults=[fault] * 1000) as server:
        line = refused(Case(name, judge(server.url, concurrency=28), "evaluate 0 q", words))
    assert time.monotonic() - start < 15
    assert line.isprintable()


def test_no_server_at_the_address(ready, monkeypatch):
    monkeypatch.chdir(ready)
    monkeypatch.delenv("LARPO_JUDGEMENTS", raising=False)
    with ChatServer(lambda body: "?") as server:
        url = server.url
    refused(Case("", judge(url), "evaluate 0 q", ("judge j", "Connection error", "were not sent")))


def test_a_judge_that_answers_garbage_loses_no_score(ready, monkeypatch):
    """Not refused: what cannot be read has no score, and the metrics say how many."""
    monkeypatch.chdir(ready)
    monkeypatch.delenv("LARPO_JUDGEMENTS", raising=False)
    with ChatServer(lambda body: "\x00 <script> I cannot say [[") as server:
        judge(server.url, timeout=30)()
        status, said = invoke(["evaluate", "0", "q"])
    assert status == 0, said
    metrics = json.loads(Path("data/evaluate/0-q.json").read_text())
    assert metrics["unparsed"] == 1.0
