"""Which commit a name of the hub stands for, with and without a network; that nobody waits long for one."""

import time

import pytest
from huggingface_hub import constants

from larpo.errors import ParameterError
from larpo.models.resolve import resolve
from larpo.sources import hub

SHA, OLD, CACHED = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def network(monkeypatch, tmp_path):
    """A hub that answers, with an empty cache; `network(None)` makes it answer no more."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = {}

    def answer(reason: str | None, sha=lambda *_: SHA) -> list[str]:
        monkeypatch.setattr(hub, "unreachable", lambda: reason)
        monkeypatch.setattr(hub, "_sha", sha)
        return said.setdefault("lines", [])

    answer(None)
    return answer


def put_in_cache(tmp_path, name: str, commit: str) -> None:
    refs = tmp_path / f"models--{name.replace('/', '--')}/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)


@pytest.mark.parametrize(
    ("reason", "revision", "recorded", "cached", "commit", "line"),
    [
        (None, None, OLD, True, SHA, ""),
        (None, OLD, None, False, OLD, ""),
        ("no network", OLD, None, False, OLD, ""),
        (
            "no network",
            None,
            OLD,
            True,
            OLD,
            "o/m: the hub cannot be reached (no network); taken is commit bbbbbbbbbbbb",
        ),
        ("no network", None, None, True, CACHED, "commit cccccccccccc, in the hub's cache"),
    ],
    ids=["asked", "pinned", "pinned, away", "away, recorded", "away, cached"],
)
def test_the_commit_of_a_name(network, tmp_path, reason, revision, recorded, cached, commit, line):
    network(reason)
    if cached:
        put_in_cache(tmp_path, "o/m", CACHED)
    lines: list[str] = []
    assert hub.commit_of("o/m", "model", revision, recorded, lines.append) == commit
    assert line in "".join(lines) and bool(line) == bool(lines)


def test_away_and_never_seen_is_one_line_that_names_what_is_here(network, tmp_path):
    network("no network")
    put_in_cache(tmp_path, "own-er/other", CACHED)
    with pytest.raises(ParameterError, match=r"^o/m: the hub cannot be reached \(no network\).*cached: own-er/other$"):
        hub.commit_of("o/m", "model", None, None, print)
    with pytest.raises(ParameterError, match=r"a dataset that is cached: none is$"):
        hub.commit_of("o/m", "dataset", None, None, print)


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    assert hub.SECONDS <= 7, "a command starts in 3 s; expected to be told within 10"

    class Silent:
        def head(self, *_, **__):
            time.sleep(5)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.1)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Silent)
    hub.unreachable.cache_clear()
    try:
        start = time.monotonic()
        assert hub.unreachable() == "no answer within 0.1 s" and time.monotonic() - start < 2
        hub.offline_where_unreachable()
        assert constants.HF_HUB_OFFLINE, "libraries ask no more"
    finally:
        hub.unreachable.cache_clear()


def test_a_record_pins_what_a_node_loads():
    record = {"kind": "hub", "type": "model", "name": "o/m", "revision": None, "version": SHA, "hash": None}
    with hub.pinned([record]):
        assert resolve("o/m").options == {"revision": SHA}
        assert resolve("o/m", "v2").options == {"revision": "v2"} and hub.revision_of("o/m", "dataset") is None
    assert resolve("o/m").options == {}
