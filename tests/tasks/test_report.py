"""Node `report` and `larpo.report.summary` on the real files of a small run."""

import contextlib
import csv
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from larpo import tables
from larpo.errors import UserError
from larpo.hashing import tree_hash
from larpo.report import summary
from larpo.report.write import PAGE, RECALL_CSV, SCORES, SCORES_CSV, TRAINING_CSV
from tasks import report
from tests.report_run import COMMIT, build, params, prompt


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of the usual parameters and its report; never changed."""
    with contextlib.chdir(folder := tmp_path_factory.mktemp("run")):
        build(params())
        report.main()
    return folder


@pytest.fixture
def html(finished, monkeypatch) -> str:
    """Its page; the working folder is the run's."""
    monkeypatch.chdir(finished)
    return Path(PAGE).read_text("utf-8")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(settings: dict | None = None, **options) -> str:
        build(settings or params(), **options)
        report.main()
        return Path(PAGE).read_text("utf-8")

    return make


def rows(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def rows_of_tsv(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f, delimiter="\t"))


def test_numbers_are_those_of_the_files(html):
    scores = json.loads(Path(SCORES).read_text())
    for p in "012":
        metrics = json.loads(Path(f"data/evaluate/{p}-held_out.json").read_text())
        entry = scores["held_out"][p]
        assert entry["greedy_accuracy"] == metrics["greedy"]["accuracy"]
        assert (entry["pass_k"], entry["k"]) == (metrics["pass"]["4"]["value"], 4)
        assert entry["mean_reward"] == metrics["mean_reward"]
        low, high = metrics["greedy"]["low"], metrics["greedy"]["high"]
        assert f"{100 * entry['greedy_accuracy']:.1f} %<small>[{100 * low:.1f}, {100 * high:.1f}]</small>" in html
    table = rows(SCORES_CSV)
    assert [r["policy"] for r in table] == ["0", "1", "2"]
    assert [float(r["pass_1"]) for r in table] == [scores["held_out"][p]["pass_1"] for p in "012"]
    recall = rows(RECALL_CSV)
    assert [(r["policy"], r["n"]) for r in recall] == [(p, n) for p in "012" for n in "1234"]
    assert float(recall[3]["recall"]) == pytest.approx(scores["held_out"]["0"]["pass_k"])


def test_training_curves_are_a_plot(html):
    """Six steps in each of two iterations: one axis from 1 to 12."""
    table = rows(TRAINING_CSV)
    assert [(r["iteration"], r["step"]) for r in table] == [(str(1 + i // 6), str(i + 1)) for i in range(12)]
    told = rows_of_tsv("data/train/2/plots/metrics/loss.tsv")
    assert [float(r["loss"]) for r in table[6:]] == [float(r["loss"]) for r in told]


def test_records_of_nodes_are_shown(html):
    lists_hash = tree_hash("data/lists/2.parquet")
    assert f'title="{lists_hash}"><code>{lists_hash[:8]}' in html
    assert f'title="data/lists/2.parquet: {lists_hash}"><code>{lists_hash[:8]}' in html
    assert "0.693148" in html
    assert "0.693147" in html
    assert COMMIT in html
    assert "1 truncated" in html
    assert "no manifest" not in html


def test_one_arrow_per_input_that_a_node_makes(html):
    """Arrows per iteration: sample 2, score 3, candidates 3, lists 2, reference 3, train 4 = 17; two iterations make
    34, and one more is that of reference@2 from policy 0, which iteration 1 starts from. Per policy: generate 2
    (policy, items), evaluate 2 (items, outputs): three make 12."""
    assert len(re.findall('class="edge"', html)) == 47


def test_without_manifests(run):
    html = run(manifests=False)
    assert 'class="edge"' not in html
    # Policy, reward, items, two nodes per policy and benchmark, seven per iteration: in the table and in the picture.
    assert html.count("no manifest") == 2 * (3 + 6 + 14)
    assert "First loss" not in html and "Environment" not in html


def test_what_a_model_wrote_is_text(html):
    assert "<script" not in html
    assert "&lt;script&gt;document.body" in html


def test_several_benchmarks_and_a_single_policy(run):
    settings = params(1, ("held_out", "second"), evaluate={"policies": ["1"]}, report={"examples": 0})
    html = run(settings)
    assert set(json.loads(Path(SCORES).read_text())) == {"held_out", "second"}
    assert html.count("<b>Recall@N.</b>") == 2 and "<h3>second</h3>" in html
    assert "Iteration 1 · 0 of 6 lists" in html
    # What `dvc plots` draws holds one benchmark: it cannot choose rows.
    assert [r["benchmark"] for r in rows(SCORES_CSV)] == ["held_out"]


def test_same_bytes_again(html):
    files = [Path(p) for p in (PAGE, SCORES, SCORES_CSV, RECALL_CSV)]
    first = [p.read_bytes() for p in files]
    report.main()
    assert [p.read_bytes() for p in files] == first


@pytest.mark.parametrize("same", ["id", "text"])
def test_trained_on_an_evaluation_prompt(run, tmp_path, same):
    build(params())
    frame = tables.read("prompts", "data/prompts/2.parquet")
    stolen = prompt("held out question 3" if same == "id" else "  Held  OUT question 3")
    tables.write(pd.concat([frame, pd.DataFrame([stolen])]), "prompts", "data/prompts/2.parquet")
    with pytest.raises(UserError, match=r"data/prompts/2.parquet, row 6: .*benchmark 'held_out' \(1 such") as error:
        report.main()
    assert "\n" not in str(error.value)
    assert not Path("report").exists()


def contradict() -> None:
    path = Path("data/evaluate/1-held_out.json")
    metrics = json.loads(path.read_text())
    metrics["pass"]["2"]["value"] += 0.01
    path.write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (contradict, r"1-held_out.json: Pass@2 is .*, its table gives"),
        (lambda: Path("data/evaluate/0-held_out.json").write_text("{"), "0-held_out.json: not valid JSON"),
        (lambda: Path("data/score/1.parquet").unlink(), "data/score/1.parquet: not found, needed by report"),
        (
            lambda: Path("data/train/1/plots/metrics/loss.tsv").write_text("epoch\tloss\n1\t2\n"),
            "loss.tsv: expected columns step and loss, found epoch, loss",
        ),
    ],
)
def test_broken_input_is_named(run, spoil, message):
    build(params())
    spoil()
    with pytest.raises(UserError, match=message):
        report.main()


def test_summary(html, capsys):
    summary.main()
    out = capsys.readouterr().out
    entry = json.loads(Path(SCORES).read_text())["held_out"]["2"]
    assert out.splitlines()[-1] == "report/index.html"
    assert f"{100 * entry['greedy_accuracy']:.1f} ({100 * entry['greedy_low']:.1f}–" in out
    assert f"{entry['mean_length']:.1f}" in out
    assert "Pass@4" in out


def test_summary_without_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"report/scores.json: not found; run `dvc repro report`"):
        summary.main()


def test_best_of_n_is_drawn(run):
    """The curve of node best_of_n: a figure with its reward, policy and benchmark, and its node in the picture."""
    point = {"value": 0.5, "low": 0.4, "high": 0.6}
    points = [{"n": n, "kl": 0.0, "score": point, "upper": point, "reward": point} for n in (1, 2, 4)]
    found = {"policy": "1", "benchmark": "held_out", "reward": "pairrm", "points": points}
    Path("data/evaluate").mkdir(parents=True, exist_ok=True)
    Path("data/evaluate/best_of_n-x.json").write_text(json.dumps(found), "utf-8")
    Path("data/evaluate/best_of_n-x.parquet").touch()
    wanted = {"x": {"policy": "1", "benchmark": "held_out", "ns": [1, 2, 4]}}
    html = run(params(best_of_n=wanted))
    assert "<b>held_out, policy 1, under pairrm.</b>" in html and "picked by the reward" in html
    assert "<title>best_of_n@x</title>" in html
