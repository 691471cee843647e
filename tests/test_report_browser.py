"""The report in a real browser: it renders without a network, every chart is there, nothing runs, and it can be read on
a desk and on a telephone, by day and by night."""

import contextlib
import html
import json
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
DAY, NIGHT = (f"--blink-settings=preferredColorScheme={i}" for i in (1, 0))
# The page in a frame of a telephone's width, which a browser's window cannot have. A text of a chart is scaled with it.
FRAME = """<iframe id="page" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe><script>
onload = () => {{
  const page = document.getElementById("page").contentDocument, view = page.defaultView, sizes = [];
  for (const text of page.querySelectorAll("figure svg text")) {{
    const svg = text.closest("svg");
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    sizes.push(scale * parseFloat(view.getComputedStyle(text).fontSize));
  }}
  const rows = [...page.querySelectorAll(".charts")].map(row => {{
    const right = Math.max(...[...row.children].map(c => c.getBoundingClientRect().right));
    return row.getBoundingClientRect().right - right;
  }});
  const wide = [...page.querySelectorAll("svg.graph .node")].map(node => {{
    const box = node.querySelector("rect").getBBox();
    return [...node.querySelectorAll("text")].some(line => {{
      const text = line.getBBox();
      return text.x < box.x + 2 || text.x + text.width > box.x + box.width - 2 || text.y < box.y
        || text.y + text.height > box.y + box.height;
    }}) ? node.textContent : "";
  }}).filter(Boolean);
  const style = name => view.getComputedStyle(page.body)[name];
  const found = {{ overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    smallest: Math.min(...sizes), empty: Math.max(...rows), wide,
    paper: style("backgroundColor"), ink: style("color") }};
  document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
}};
</script>"""


@pytest.fixture
def chromium(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install the package chromium")

    def call(*args: str, page: str = PAGE) -> str:
        profile = tmp_path / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *args, Path(page).resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run and its report."""
    with contextlib.chdir(folder := tmp_path_factory.mktemp("run")):
        build(params())
        report.main()
    return folder


@pytest.fixture
def page(made, monkeypatch):
    monkeypatch.chdir(made)


def test_every_chart_is_drawn(page, chromium):
    """Figures: scores, recall, lengths of the benchmark; two training curves, lengths of training; rewards of two
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


def test_screenshot_shows_a_page(page, chromium, tmp_path):
    chromium("--window-size=1200,1800", f"--screenshot={tmp_path / 'page.png'}")
    image = Image.open(tmp_path / "page.png").convert("RGB")
    assert image.size == (1200, 1800)
    colours = image.getcolors(maxcolors=1 << 24)
    background = max(colours)[0] / (1200 * 1800)
    assert 0.5 < background < 0.99
    # The middle tones of the charts, which text and rules do not have.
    assert {(63, 127, 191), (200, 112, 42)} <= {colour for _, colour in colours}


@pytest.mark.parametrize(("width", "scheme"), [(1280, DAY), (390, NIGHT)])
def test_can_be_read(page, chromium, width, scheme):
    """Nothing is wider than the window, no text of a node than its box, no text of a chart smaller than 11 pixels, no
    row of charts ends early, and text is light on dark where the reader's system is."""
    text = html.escape(Path(PAGE).read_text("utf-8"))
    Path("frame.html").write_text(FRAME.format(width=width, page=text), "utf-8")
    found = json.loads(
        html.unescape(re.search("<pre>(.*?)</pre>", chromium(scheme, "--dump-dom", page="frame.html"))[1])
    )
    paper, ink = (sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("paper", "ink"))
    assert (found["overflow"], paper > ink) == (0, scheme == DAY)
    assert found["smallest"] >= 11
    assert found["empty"] < 2
    assert found["wide"] == []
