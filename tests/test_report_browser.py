"""The report in a real browser: it renders without a network, every chart is there, nothing runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from larpo.report.write import PAGE
from tasks import report
from tests.report_run import build, params

pytestmark = pytest.mark.browser
NAMES = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.fixture
def chromium(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install the package chromium")

    def call(*args: str) -> str:
        profile = tmp_path / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        page = Path(PAGE).resolve().as_uri()
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *args, page],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return call


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(params())
    report.main()


def test_every_chart_is_drawn(page, chromium):
    """Figures: scores, recall, two training curves, lengths of training and of the benchmark, rewards of two
    iterations = 8; and the graph."""
    dom = chromium("--enable-logging=stderr", "--dump-dom")
    figures = re.findall(r'<figure class="chart.*?</figure>', dom, flags=re.S)
    assert len(figures) == 8
    for figure in figures:
        assert len(re.findall(r"<svg\b", figure)) == 1
        assert len(re.findall(r"<path\b", figure)) > 3
    assert len(re.findall(r'<svg class="graph"', dom)) == 1
    assert "Sampled lists" in dom
    assert not re.search(r"Traceback|Javascript Error|Uncaught|undefined", dom)


@pytest.mark.parametrize("width", [1200, 500])
def test_screenshot_shows_a_page(page, chromium, tmp_path, width):
    chromium(f"--window-size={width},1800", f"--screenshot={tmp_path / 'page.png'}")
    image = Image.open(tmp_path / "page.png").convert("RGB")
    assert image.size == (width, 1800)
    colours = image.getcolors(maxcolors=1 << 24)
    background = max(colours)[0] / (width * 1800)
    assert 0.5 < background < 0.99
    # The middle tones of the charts, which text and rules do not have.
    assert {(63, 127, 191), (200, 112, 42)} <= {colour for _, colour in colours}
