"""A study's page (HTML, opens from disk), its numbers (JSON), and docs/findings.md made from all numbers."""

import json
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from larpo.report.charts import HEIGHT, WIDTH, bounded, svg
from larpo.studies.spec import Study, load_study

RESULTS, PAGES, FINDINGS = Path("studies/results"), Path("report/studies"), Path("docs/findings.md")
STATEMENTS = {
    "F1": "Recall grows with N for retriever and language model alike",
    "F2": "Low temperature is better at N = 1, high temperature at N > 10",
    "F3": "Contrastive is at least as good as pairwise",
    "F4": "Listwise objectives are at least as good as both",
    "F5": "The harder the negatives, the better the final model",
    "F6": "Temperature has an optimum: lower is harder and better, until diversity collapses",
    "F7": "Longer lists help, with diminishing returns",
    "F8": "Memory helps: all previous, then the previous, then the current iteration only",
    "F9": "SFT lifts greedy accuracy and Recall@N most; preference optimisation on top lifts both more",
}
"""The paper's findings in our words (shared by several of its sections)."""


def shown(entry: dict[str, Any] | None, percent: bool) -> str:
    """`31.2 [25.9, 36.5]`; without an interval the value alone, `–` without a value."""
    if entry is None:
        return "–"
    scale = 100 if percent else 1
    text = f"{scale * entry['value']:.1f}" if percent else f"{entry['value']:.3g}"
    if entry.get("low") is None:
        return text
    low, high = (scale * entry[k] for k in ("low", "high"))
    return f"{text} [{low:.1f}, {high:.1f}]" if percent else f"{text} [{low:.3g}, {high:.3g}]"


def figure(study: Study, summary: dict[str, Any]) -> Markup | None:
    """The study's curves with their intervals over seeds; None where it draws none."""
    if study.figure is None:
        return None
    rows = []
    for line in study.figure.lines:
        for x, cell, measure in line.points:
            entry = summary["cells"].get(cell, {}).get("measures", {}).get(measure)
            if entry is not None:
                rows.append({"line": line.label, "x": x, **{k: entry[k] for k in ("value", "low", "high")}})
    if not rows:
        return None
    order = list(dict.fromkeys(r["line"] for r in rows))
    percent = all(m["percent"] for m in summary["measures"].values())
    axis = alt.Axis(format=".0%") if percent else alt.Axis()
    scale = alt.Scale(type="log", base=2, nice=False) if study.figure.log_x else alt.Scale(zero=False, nice=False)
    ticks = sorted({row["x"] for row in rows})
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("x:Q", title=study.figure.x, scale=scale, axis=alt.Axis(values=ticks, format="~g")),
        color=alt.Color("line:N", title=None, sort=order, legend=alt.Legend(symbolOpacity=1)),
    )
    y = alt.Y("value:Q", title=study.figure.y, axis=axis, scale=alt.Scale(zero=False))
    layers = [
        bounded(base).mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title=study.figure.y), y2="high:Q"),
        base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=30)).encode(y=y),
    ]
    return svg(alt.layer(*layers).properties(width=int(1.4 * WIDTH), height=int(1.2 * HEIGHT)), study.name)


def write_page(study: Study, summary: dict[str, Any], project: Path) -> Path:
    """Write the page and the numbers; returns the page's path."""
    name = f"{study.name}-{summary['scale']}"
    env = Environment(
        loader=PackageLoader("larpo.studies", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(shown=shown, statements=STATEMENTS)
    reported = _reported(study, summary)
    page = env.get_template("page.html.j2").render(
        study=study, summary=summary, reported=reported, figure=figure(study, summary)
    )
    path = project / PAGES / f"{name}.html"
    _write(path, page)
    _write(project / RESULTS / f"{name}.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return path


def write_findings(project: Path) -> Path:
    """docs/findings.md from every result in studies/results/: nothing in it is written by hand."""
    found = [json.loads(p.read_text("utf-8")) for p in sorted((project / RESULTS).glob("*.json"))]
    # Numbers of a study that is gone cannot be explained.
    results = [r for r in found if (project / "studies" / f"{r['study']}.yaml").is_file()]
    lines = [
        "# Findings",
        "",
        "Made by `larpo study` from `studies/results/`; do not edit. A claim is a difference taken seed by seed, with",
        "its 95 % t interval over seeds: it holds where the interval lies above 0, does not hold where it lies below",
        "(or every seed gives 0), and is undecided otherwise. A finding holds where all its claims do. A verdict is",
        "about the model and problems of its scale. The recipe of scale cpu was chosen on seed 0, one of the seeds.",
        "",
        "| finding | study | scale | seeds | verdict |",
        "| --- | --- | --- | --: | --- |",
    ]
    for finding, statement in STATEMENTS.items():
        for r in results:
            if finding in r["findings"]:
                told = r["findings"][finding]["verdict"]
                study = f"[{r['study']}](#{r['study']}-{r['scale']})"
                lines.append(f"| {finding}: {statement} | {study} | {r['scale']} | {r['seeds']} | **{told}** |")
    for r in results:
        study = load_study(project / "studies", r["study"])
        lines += ["", f'## <a name="{r["study"]}-{r["scale"]}"></a>{study.title} ({r["study"]}, {r["scale"]})', ""]
        whose = f"{study.paper} of the paper" if study.paper else "Not in the paper"
        lines += [f"{whose}. {study.about}", ""]
        if told := study.differs.get(r["scale"]):
            lines += [told, ""]
        commits = ", ".join(r.get("commits") or ["unknown"])
        lines += [f"Seeds: {r['seeds']}; mean and 95 % interval over seeds. Code of commit {commits};"]
        lines += [f"{r['run_seconds']} s in all runs together.", ""]
        lines += _table(r, _reported(study, r))
        for finding, found in r["findings"].items():
            lines += ["", f"{finding} **{found['verdict']}**: {STATEMENTS[finding]}.", ""]
            for claim in found["claims"]:
                difference = shown(claim["difference"], claim["percent"])
                lines.append(f"- {claim['says']}: difference {difference}, {claim['verdict']}")
    path = project / FINDINGS
    _write(path, "\n".join(lines) + "\n")
    return path


def _reported(study: Study, result: dict[str, Any]) -> dict[str, str]:
    """Measures that the paper has numbers for, in the study's order, with their labels."""
    known = {m for cell in result["cells"].values() for m in cell["reported"]}
    return {name: (m.paper and m.paper.label) or m.label for name, m in study.measures.items() if name in known}


def _table(result: dict[str, Any], reported: dict[str, str]) -> list[str]:
    """A row per cell; of a single cell a row per measure, which reads better."""
    measures, cells = result["measures"], result["cells"]
    columns = {
        m: [shown(cell["measures"].get(m), facts["percent"]) for cell in cells.values()]
        for m, facts in measures.items()
    }
    head = ["", *(facts["label"] for facts in measures.values()), *(f"paper: {label}" for label in reported.values())]
    rows = [
        [
            cell["label"],
            *(columns[m][i] for m in measures),
            *(f"{cell['reported'][m]:g}" if m in cell["reported"] else "–" for m in reported),
        ]
        for i, cell in enumerate(cells.values())
    ]
    if len(rows) == 1:
        head, *rows = [list(pair) for pair in zip(head, rows[0], strict=True)]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' --: |' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
