"""A judge's key stays in the environment: it is in no file that a run writes and in nothing that it prints.

The server is a bad one: it repeats the request's Authorization header in its replies and in its errors.
"""

import base64
import html
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import yaml

from larpo.benchmarks.judge import forms
from tests.bad_input.harness import invoke
from tests.chat_server import ChatServer
from tests.conftest import ROOT

KEY = 'sk-Planted+Key/0123=ä&<x>"'.replace("ä", "a")
TOLD = f"Authorization: Bearer {KEY} {quote(KEY, safe='')} {base64.b64encode(f'Bearer {KEY}'.encode()).decode()} [[1]]"


def traces() -> list[bytes]:
    """The key as it is and as it may be encoded; of base64 what does not depend on where in a text the key stands."""
    whole = [KEY, quote(KEY), quote(KEY, safe=""), html.escape(KEY), json.dumps(KEY)[1:-1]]
    shifted = [base64.b64encode(b"x" * i + KEY.encode())[4:-4].decode() for i in range(3)]
    return [text.encode() for text in {*whole, *shifted}]


def contents(path: Path) -> list[bytes]:
    """A file's bytes, and what it holds where it is compressed or a database."""
    raw = path.read_bytes()
    found = [raw]
    if raw[:4] == b"PAR1":
        found.append(json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False).encode())
    if raw[:15] == b"SQLite format 3":
        found.append("\n".join(sqlite3.connect(f"file:{path}?mode=ro", uri=True).iterdump()).encode())
    return found


def leaks(folder: Path) -> list[str]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    assert len(files) > 100
    wanted = traces()
    return [str(p) for p in files if any(trace in content for content in contents(p) for trace in wanted)]


@pytest.mark.slow
def test_no_trace_of_the_key(finished_project, warm_nodes, tmp_path, monkeypatch, capfd):
    project = finished_project.copy(tmp_path / "project")
    project.variables = warm_nodes
    path = project.folder / "params.yaml"
    raw = yaml.safe_load(path.read_text())
    with ChatServer(lambda body: TOLD, faults=[{}] * 5 + [{"status": 401, "message": TOLD}] * 99) as server:
        asks = {"benchmark": "mixeval", "data": str(ROOT / "data/samples/questions"), "options": {"parser": "model"}}
        raw["benchmarks"]["q"] = asks | {"judge": "j", "generate": {"max_new_tokens": 4}}
        judge = {"model": "m", "base_url": server.url, "api_key_env": "PLANTED_KEY", "concurrency": 1}
        raw["judges"] = {"j": judge}
        path.write_text(yaml.safe_dump(raw, sort_keys=False))

        # Through Prefect, DVC and the nodes: five replies, then a refusal.
        own = ("DVC_SITE_CACHE_DIR", "LARPO_JUDGEMENTS", "PREFECT_HOME", "PREFECT_API_URL")
        plain = {k: v for k, v in project.environment.items() if k not in own}
        command = [sys.executable, "-m", "flows.run", "--target", "evaluate@0-q"]
        done = subprocess.run(
            command, cwd=project.folder, env=plain | {"PLANTED_KEY": KEY}, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == 1
        assert "401" in said
        assert "[key]" in said
        assert server.keys[0] == f"Bearer {KEY}"
        # And to the end: a report of what the judge said.
        server.faults.clear()
        monkeypatch.chdir(project.folder)
        monkeypatch.setenv("PLANTED_KEY", KEY)
        monkeypatch.delenv("LARPO_JUDGEMENTS", raising=False)
        status, error = invoke(["evaluate", "0", "q"])
        assert status == 0, error
    kept = next((project.folder / "judgements").glob("*.jsonl")).read_text()
    assert kept.count("[key]") >= 28
    printed = capfd.readouterr()
    for text in (said, printed.out, printed.err):
        assert not [t for t in traces() if t in text.encode()]
    assert leaks(project.folder) == []
    # The search finds what it looks for.
    (project.folder / "planted.txt").write_text(f"x{base64.b64encode(KEY.encode()).decode()}")
    assert leaks(project.folder) == [str(project.folder / "planted.txt")]


def test_a_key_is_taken_out_in_every_form():
    text = TOLD
    for form in forms(KEY):
        text = text.replace(form, "[key]")
    assert not [t for t in traces() if t in text.encode()]
    assert forms(None) == forms("none") == []
