"""Pages escape what models, datasets, judges and people wrote: in a real browser no script runs, nothing is fetched."""

import json
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from larpo import tables
from larpo.report.write import PAGE
from larpo.studies import load_study
from larpo.studies.page import write_page
from tasks import report
from tests.larpo.studies.conftest import STUDY, made
from tests.report_run import build, params
from tests.test_report_browser import CHROMIUM, FLAGS

pytestmark = pytest.mark.browser


@pytest.fixture
def outside():
    """A server that must not be asked; yields its address and the paths that were."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def payload(url: str) -> str:
    """Breaks out of text, attributes, comments, script and JSON; says PWNED in the page's title, and calls `url`."""
    run = "document.title='PWNED'"
    return (
        f"\"'--></script></style></title></svg><script>{run}</script><img src='{url}/x.png' onerror=\"{run}\">"
        f"<svg onload=\"{run}\"><iframe src='{url}/frame'></iframe><link rel=stylesheet href='{url}/x.css'>"
        f'{{{{ 7 * 7 }}}}<a href="javascript:{run}">x</a>`${{{run}}}`\\u003cscript>{run}\\u003c/script>'
    )


def shown(path: Path, profile: Path) -> str:
    """The page as Chromium has it once it is loaded."""
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install the package chromium")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, path.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


class Elements(HTMLParser):
    """What a page holds beside text: elements and attributes that run or fetch something."""

    def __init__(self, dom: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "embed", "link", "base"):
            self.found.append(tag)
        for name, value in attrs:
            leads = name in ("src", "href", "xlink:href", "action") and not (value or "").startswith("#")
            if name.startswith("on") or leads:
                self.found.append(f"{tag} {name}={value}")


def unharmed(dom: str, asked: list[str]) -> None:
    assert asked == []
    assert Elements(dom).found == []
    assert "<title>PWNED" not in dom
    assert "PWNED" in dom  # as text


def test_the_payload_runs_where_it_is_not_escaped(outside, tmp_path):
    """Without this the other tests could not fail."""
    url, asked = outside
    path = tmp_path / "open.html"
    path.write_text(f"<title>x</title><p>{payload(url)}</p>")
    assert "<title>PWNED" in shown(path, tmp_path / "profile")
    assert "/x.png" in asked
    assert {"script", "img", "iframe", "link"} <= set(Elements(path.read_text()).found)


def hostile(text: str) -> dict[str, Any]:
    """How each column of text is spoilt; prompts stay different from each other."""
    return {
        "text": lambda old: f"{old} {text}",
        "messages": lambda old: [{"role": f"user{text}", "content": f"{m['content']} {text}"} for m in old],
        "answer": lambda old: f"{old} {text}",
        "parsed": lambda old: f"{old} {text}",
        "judgement": lambda old: json.dumps({"text": text}),
        "source": lambda old: text,
        "finish_reason": lambda old: old,
    }


def test_report(outside, tmp_path, monkeypatch):
    """In prompts, responses, answers, judgements, titles, settings, manifests and names."""
    monkeypatch.chdir(tmp_path)
    url, asked = outside
    text = payload(url)
    settings = params(report={"title": text}, judges={"j": {"model": text}})
    settings["prompts"]["system"] = text
    settings["policy"]["model"] = text
    build(settings)
    for kind, pattern in (
        ("prompts", "prompts/*"),
        ("candidates", "candidates/[1-9]*"),
        ("evaluations", "evaluate/*"),
        ("items", "items/*"),
    ):
        for path in Path("data").glob(f"{pattern}.parquet"):
            frame = tables.read(kind, path)
            for column, spoil in hostile(text).items():
                if column in frame:
                    frame[column] = frame[column].map(spoil)
            tables.write(frame, kind, path)
    for path in Path("data").rglob("*.manifest.json"):
        record = json.loads(path.read_text())
        record["notes"] |= {text: text}
        record["rows"]["dropped"] = {text: 3}
        record["hardware"] |= {"cpu": text, "system": text, "gpus": [text]}
        record["packages"][text] = text
        record["git"]["commit"] = text
        path.write_text(json.dumps(record))
    for path in Path("data/evaluate").glob("*.json"):
        found = json.loads(path.read_text())
        if "scores" in found or "strategies" in found:
            found["scores"] = {text: {"value": 0.5, "low": 0.4, "high": 0.6}}
            found["strategies"] = [s | {"strategy": text} for s in found["strategies"]]
            path.write_text(json.dumps(found))
    report.main()
    unharmed(shown(Path(PAGE), tmp_path / "profile"), asked)


def test_study(outside, tmp_path):
    url, asked = outside
    text = payload(url)
    study = json.loads(json.dumps(STUDY))
    study |= {"title": text, "paper": text, "about": text, "differs": {"cpu": text}}
    study["cells"]["one"]["label"] = study["cells"]["two"]["label"] = study["measures"]["score"]["label"] = text
    study["claims"]["F4"][0]["says"] = text
    study["figure"] |= {"x": text, "y": text}
    study["figure"]["lines"][0]["label"] = text
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "small.yaml").write_text(yaml.safe_dump(study))
    values = {"one": [0.5, 0.6, 0.55], "two": [0.2, 0.3, 0.26]}
    loaded = load_study(folder, "small")
    results = made(loaded, values) | {"commits": [text]}
    unharmed(shown(write_page(loaded, results, tmp_path), tmp_path / "profile"), asked)
