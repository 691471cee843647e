"""Judges that fail, hang and answer garbage, and nodes killed while they pay: no reply is lost or paid twice."""

import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

import tasks.evaluate
import tasks.generate
import tasks.inputs
import tasks.items
from larpo.benchmarks.judge import JudgeClient
from larpo.config.judges import JudgeParams
from tests.chat_server import ChatServer
from tests.conftest import ROOT, Project
from tests.faults.kit import Running, assert_nothing_runs, fill, products, small_disk

CONCURRENCY = 3
FAULTS = [
    {"status": 500},
    {"status": 503},
    {"drop": True},
    {"sleep": 1.2},
    {"body": "<html>busy</html>"},
    {"body": '{"choices": [{"mess'},
    {"body": '{"choices": [{"message": null}]}'},
]


def answer(body: dict) -> str | dict:
    """A judgement that depends on the request alone; every fifth one is cut off by its length."""
    text = "[[0.5]]" if "Reference" in body["messages"][-1]["content"] else "[[A]]"
    cut = {"message": {"role": "assistant", "content": "I think"}, "finish_reason": "length"}
    return cut if sum(map(ord, json.dumps(body))) % 5 == 0 else text


def asked(server: ChatServer) -> Counter:
    return Counter(json.dumps(body, sort_keys=True) for body in server.bodies)


def client(server: ChatServer, store: Path) -> JudgeClient:
    settings = JudgeParams(model="judge", base_url=server.url, concurrency=CONCURRENCY, attempts=2, timeout=5)
    return JudgeClient(settings, store, "j")


def test_on_a_full_disk_no_further_reply_is_paid_for(tmp_path):
    """Room for a few: what was paid for is kept, nothing is sent that could not be; with room the rest follows."""
    requests = [{"messages": [{"role": "user", "content": f"{i} " + "x" * 20_000}]} for i in range(40)]
    with ChatServer(lambda body: "y") as server, small_disk(tmp_path / "judgements", 1024) as disk:
        filler = fill(disk, 500_000)
        with pytest.raises(OSError, match="No space left on device"):
            client(server, disk).complete(requests)
        kept = len(client(server, disk).store.replies)
        assert 3 < kept == len(server.bodies) < 25
        filler.unlink()
        with small_disk(tmp_path / "other", 4096) as larger:
            for file in disk.iterdir():
                shutil.copy(file, larger)
            assert [r["text"] for r in client(server, larger).complete(requests)] == ["y"] * 40
        assert set(asked(server).values()) == {1} and len(server.bodies) == 40


@pytest.fixture
def judged(tmp_path, finished_project, warm_nodes, monkeypatch) -> Project:
    """A finished run with a judged benchmark, whose outputs are generated and not yet judged."""
    project = finished_project.copy(tmp_path / "project")
    project.variables = warm_nodes
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("LARPO_JUDGEMENTS", str(project.folder / "judgements"))
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["benchmarks"]["q"] = {
        "benchmark": "mixeval",
        "data": str(ROOT / "data/samples/questions"),
        "judge": "j",
        "generate": {"max_new_tokens": 4},
        "options": {"parser": "model"},
    }
    judge = {"model": "judge", "base_url": "http://127.0.0.1:9/v1", "timeout": 0.6, "attempts": 9}
    params["judges"]["j"] = judge | {"concurrency": CONCURRENCY}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    tasks.inputs.main()
    tasks.items.main("q")
    tasks.generate.main("0", "q")
    return project


@pytest.mark.faults
def test_kills_while_a_faulty_judge_is_paid(judged):
    """30 % of the requests fail, in every way; evaluate is killed again and again. A reply that came is never asked
    for again: only what was under way at a kill is, at most as many requests as are in flight."""
    rng = random.Random(7)
    text = Path("params.yaml").read_text()

    def at(server: ChatServer) -> None:
        Path("params.yaml").write_text(text.replace("http://127.0.0.1:9/v1", server.url))

    def outputs() -> dict[str, bytes]:
        return {k: v for k, v in products(judged.folder).items() if k.startswith("data/evaluate/0-q")}

    with ChatServer(answer) as server:
        at(server)
        tasks.evaluate.main("0", "q")
        expected, needed = outputs(), server.answered
        # 28 questions; the judge is asked differently where its reply was cut off.
        assert needed == len(server.bodies) == len(asked(server)) > 28 and len(expected) == 2
    shutil.rmtree("judgements")
    for path in expected:
        Path(path).unlink()

    faults = [rng.choice(FAULTS) if rng.random() < 0.3 else {} for _ in range(2000)]
    kills = 0
    with ChatServer(answer, faults, delay=0.1) as server:
        at(server)
        for goal in (1, 5, 9, 14, 20, 26):
            running = Running(judged, "-m", "tasks.evaluate", "0", "q")
            if running.wait_for(lambda g=goal: server.answered >= g, 120):
                running.kill("tree")
                kills += 1
            running.finish()
            assert_nothing_runs(judged.folder)
            assert not any(Path(path).exists() for path in expected)
        status, printed = Running(judged, "-m", "tasks.evaluate", "0", "q").finish()
        assert status == 0, printed
        time.sleep(0.3)
        assert kills == 6 and needed <= server.answered <= needed + kills * CONCURRENCY
        assert outputs() == expected
        sent = len(server.bodies)
        assert Running(judged, "-m", "tasks.evaluate", "0", "q").finish()[0] == 0
        assert len(server.bodies) == sent, "evaluated again it asks for nothing"
    assert sent > needed * 1.1, "the faults were met"
