"""The judge client against a real server on loopback: order, store, faults, kills."""

import json
import signal
import subprocess
import sys
import time

import pytest

from larpo.benchmarks.judge import JudgeClient, Store, as_json
from larpo.config.judges import JudgeParams
from larpo.errors import UserError
from tests.chat_server import ChatServer
from tests.conftest import ROOT
from tests.larpo.benchmarks.kit import judge, refused


def asks(*texts: str) -> list[dict]:
    return [{"messages": [{"role": "user", "content": t}], "max_tokens": 4} for t in texts]


def echo(body: dict) -> str:
    return "re: " + body["messages"][-1]["content"]


def test_order_and_nothing_is_asked_twice(tmp_path):
    with ChatServer(echo) as server:
        first = judge(server, tmp_path).complete(asks("a", "b", "a", "c"))
        assert [r["text"] for r in first] == ["re: a", "re: b", "re: a", "re: c"]
        assert len(server.bodies) == 3, "equal requests are one"
        again = judge(server, tmp_path).complete(asks("c", "a", "d"))
        assert [r["text"] for r in again] == ["re: c", "re: a", "re: d"]
        assert len(server.bodies) == 4
        assert server.bodies[0]["model"] == "m/judge"
        assert first[0]["usage"]["prompt_tokens"] == 7
    # The key is not the address: another server of the same judge is not asked either.
    with ChatServer(lambda body: "other") as moved:
        assert judge(moved, tmp_path).complete(asks("a"))[0]["text"] == "re: a"
        assert judge(moved, tmp_path, model="m/other").complete(asks("a"))[0]["text"] == "other"
        assert judge(moved, tmp_path, options={"seed": 1}).complete(asks("a"))[0]["text"] == "other"


def test_requests_run_side_by_side_up_to_the_limit(tmp_path):
    with ChatServer(echo, delay=0.05) as server:
        judge(server, tmp_path, concurrency=4).complete(asks(*map(str, range(16))))
        assert server.most_at_once == 4


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "retry_after": 0.05},
        {"status": 500},
        {"drop": True},
        {"sleep": 1.5},
        {"body": "<html>"},
        {"body": "null"},
        {"body": "[]"},
        {"body": "{}"},
        {"body": '{"choices": []}'},
        {"body": '{"choices": [{}]}'},
    ],
    ids=str,
)
def test_passing_faults_are_repeated(tmp_path, fault):
    with ChatServer(echo, faults=[fault, fault]) as server:
        start = time.monotonic()
        got = judge(server, tmp_path, timeout=0.3, concurrency=1).complete(asks("a"))
        assert got[0]["text"] == "re: a"
        assert len(server.bodies) == 3
        if "retry_after" in fault:
            assert time.monotonic() - start >= 0.1, "it waits as long as it is told to"


def test_pauses_outlast_a_minute_of_rate_limits_and_obey_the_server(tmp_path, monkeypatch):
    """Half a second doubled up to 8 s, each up to a quarter less: at the default number of attempts about a minute,
    where the server does not say how long; for a server that says so, up to two minutes."""
    slept: list[float] = []
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.5)
    monkeypatch.setattr("openai._base_client.time.sleep", slept.append)
    for fault, least, most in (({}, 45, 75), ({"retry_after": 100}, 1100, 1100)):
        slept.clear()
        with ChatServer(echo, faults=[{"status": 429} | fault] * 11) as server:
            judge(server, tmp_path / str(least), attempts=JudgeParams(model="m").attempts).complete(asks("a"))
        pauses = [seconds for seconds in slept if seconds]  # the server sleeps for none
        assert len(pauses) == 11 and pauses[:4] == sorted(pauses[:4])
        assert least <= sum(pauses) <= most


def test_what_came_is_kept_when_others_fail_for_good(tmp_path):
    """One at a time: a fails at 3 attempts, b and c are answered; the next run asks for a alone."""
    with ChatServer(echo, faults=[{"status": 503}] * 3) as server:
        one = judge(server, tmp_path, concurrency=1)
        with pytest.raises(UserError, match=r"1 of 3 requests failed at each of 3 attempts .*run again") as error:
            one.complete(asks("a", "b", "c"))
        assert "\n" not in str(error.value)
        assert len(server.bodies) == 5
        assert judge(server, tmp_path).complete(asks("a", "b", "c"))[0]["text"] == "re: a"
        assert len(server.bodies) == 6


def test_a_refusal_is_final_and_names_the_judge(tmp_path):
    with ChatServer(echo, faults=[{"status": 404, "message": "no such model"}]) as server:
        with pytest.raises(UserError, match=r"judges\.test: .*refuses 'm/judge': 404 .*no such model"):
            judge(server, tmp_path, concurrency=1).complete(asks("a", "b"))
        assert len(server.bodies) == 1, "nothing more is sent"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            {"status": 400, "param": "max_tokens", "code": "unsupported_parameter", "message": "not supported"},
            [
                *("refuses the field 'max_tokens' for 'm/judge': 400", "not supported"),
                *("judges.test.drop: [max_tokens]", "judges.test.rename: {max_tokens: max_completion_tokens}"),
            ],
        ),
        ({"status": 400, "param": "temperature", "code": "unsupported_value"}, ["judges.test.drop: [temperature]"]),
        ({"status": 400, "param": "top_k"}, ["the field 'top_k'", "take it out of judges.test.options"]),
        ({"status": 400, "param": "messages[0].role"}, ["the field 'messages'"]),
        ({"status": 422, "detail": [{"loc": ["body", "temperature"]}]}, ["judges.test.drop: [temperature]"]),
        (
            {"status": 422, "detail": "no"},
            ["if it does not take one of max_tokens, temperature, top_k: see judges.test"],
        ),
        ({"status": 403, "message": "no logprobs"}, ["no logprobs", "see judges.test.drop and rename"]),
    ],
    ids=str,
)
def test_a_field_that_a_server_does_not_take_is_named_with_the_way_out(tmp_path, fault, words):
    with ChatServer(echo, faults=[fault]) as server:
        asked = [{**asks("a")[0], "temperature": 1}]
        refused(words, judge(server, tmp_path, concurrency=1, options={"top_k": 1}).complete, asked)
        assert server.bodies[0]["top_k"] == 1, "fields that OpenAI's own server does not know are sent too"


def test_fields_are_dropped_and_renamed(tmp_path):
    with ChatServer(echo) as server:
        changed = judge(server, tmp_path, drop=["temperature"], rename={"max_tokens": "max_completion_tokens"})
        changed.complete([{**asks("a")[0], "temperature": 1}])
        messages = [{"role": "user", "content": "a"}]
        assert server.bodies == [{"model": "m/judge", "messages": messages, "max_completion_tokens": 4}]
    for settings, word in (
        ({"drop": ["temprature"]}, "did you mean 'temperature'"),
        ({"drop": ["messages"]}, "no benchmark sends 'messages'"),
        ({"rename": {"max_tokens": "stream"}}, "replies are kept whole"),
        ({"rename": {"max_tokens": "messages"}}, "the benchmark's prompt"),
        ({"rename": {"max_tokens": "n", "seed": "n"}}, "two fields get the same name"),
    ):
        with pytest.raises(ValueError, match=word):
            JudgeParams(model="m", **settings)


def test_a_server_without_the_logprobs_that_it_is_asked_for_is_left_early(tmp_path):
    """At most eight replies are paid for, beside those in flight, and none when it is run again."""
    requests = [request | {"logprobs": True} for request in asks(*map(str, range(60)))]
    with ChatServer(echo) as server:
        for _ in range(2):
            words = ["judges.test", "without the log-probabilities", "options.annotator: alpaca_eval_gpt4"]
            refused(words, judge(server, tmp_path, concurrency=2).complete, requests)
        assert 8 <= len(server.bodies) <= 9


def test_a_reply_with_half_a_surrogate_pair_is_kept_as_it_is(tmp_path):
    """A judge that quotes half of a character: nothing is lost, asked again, or too much for a table."""
    said = 'it says "\ud835", \ud835\udc00 and \0'
    with ChatServer(lambda body: said) as server:
        found = [judge(server, tmp_path).complete(asks("a"))[0] for _ in range(2)]
        assert [reply["text"] for reply in found] == ['it says "\ud835", \U0001d400 and \0'] * 2
        assert len(server.bodies) == 1
    assert json.loads(as_json(found[0]).encode()) == found[0]


def test_a_server_that_is_gone_is_left_early(tmp_path):
    """60 requests, four at a time: after ten without an answer (and those in flight) no more are sent."""
    with ChatServer(echo, faults=[{"status": 503}] * 1000) as server:
        four = judge(server, tmp_path, concurrency=4, attempts=2)
        with pytest.raises(UserError, match=r"of 60 requests failed .* one after another: the last \d+ were not sent"):
            four.complete(asks(*map(str, range(60))))
        assert 20 <= len(server.bodies) <= 2 * 14
    with pytest.raises(UserError, match=r"judge test: .*Connection error"):
        judge(server, tmp_path, attempts=1).complete(asks("a"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 400, "code": "content_filter"}, "content_filter"),
        ({"status": 400, "message": "This model's maximum context length is 8192 tokens"}, "context_length"),
    ],
)
def test_a_request_refused_for_what_it_holds_is_answered_so(tmp_path, fault, reason):
    """It would be refused again: it has no text, the others have theirs, and nothing is asked a second time."""
    with ChatServer(echo, faults=[fault]) as server:
        for _ in range(2):
            found = judge(server, tmp_path, concurrency=1).complete(asks("a", "b"))
            assert [(r["text"], r["finish_reason"]) for r in found] == [(None, reason), ("re: b", "stop")]
        assert len(server.bodies) == 2


def test_a_key_is_needed_away_from_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    params = JudgeParams(model="m", base_url="https://judge.invalid/v1", api_key_env="SOME_KEY")
    with pytest.raises(UserError, match=r"judges\.test\.api_key_env: .*SOME_KEY is not set"):
        JudgeClient(params, tmp_path, "test").complete(asks("a"))
    monkeypatch.setenv("SOME_KEY", "secret")
    with ChatServer(echo) as server:
        judge(server, tmp_path, api_key_env="SOME_KEY").complete(asks("a"))
        assert server.keys == ["Bearer secret"]
    assert "secret" not in "".join(p.read_text() for p in tmp_path.iterdir())


def test_a_torn_last_line_is_asked_again(tmp_path):
    store = Store(tmp_path / "j.jsonl")
    store.add("k1", {}, {"text": "one"})
    store.add("k2", {}, {"text": "two"})
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-9])
    torn = Store(store.path)
    assert list(torn.replies) == ["k1"]
    torn.add("k2", {}, {"text": "two"})
    assert Store(store.path).replies == {"k1": {"text": "one"}, "k2": {"text": "two"}}


KILLED = """
import sys
from larpo.benchmarks.judge import JudgeClient
from larpo.config.judges import JudgeParams
params = JudgeParams(model="m", base_url=sys.argv[1], concurrency=2)
requests = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(30)]
print([r["text"] for r in JudgeClient(params, sys.argv[2], "test").complete(requests)])
"""


def test_kill_in_the_middle_asks_only_for_what_is_missing(tmp_path):
    """SIGKILL after 10 answers: of 30 requests at most the two in flight are sent a second time."""
    with ChatServer(echo, delay=0.03) as server:
        command = [sys.executable, "-c", KILLED, server.url, str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while server.answered < 10:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        before = len(server.bodies)
        assert before < 30
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout.replace("'", '"')) == [f"re: {i}" for i in range(30)]
        assert 30 <= len(server.bodies) <= 32
