"""A study's page: HTML that opens from disk, made from its results and their verdicts."""

import json
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from larpo.report.charts import HEIGHT, WIDTH, bounded, svg
from larpo.studies.spec import Study
from larpo.studies.text import STATEMENTS, p_text, paper_text, paragraph, shown

RESULTS, PAGES = Path("studies/results"), Path("report/studies")


def figure(study: Study, results: dict[str, Any]) -> Markup | None:
    """The study's curves with their intervals over seeds; None where it draws none."""
    if study.figure is None:
        return None
    rows = []
    for line in study.figure.lines:
        for x, cell, measure in line.points:
            entry = results["cells"].get(cell, {}).get("measures", {}).get(measure)
            if entry is not None:
                rows.append({"line": line.label, "x": x, **{k: entry[k] for k in ("value", "low", "high")}})
    if not rows:
        return None
    order = list(dict.fromkeys(r["line"] for r in rows))
    drawn = {m for line in study.figure.lines for _, _, m in line.points}
    percent = all(m["percent"] for name, m in results["measures"].items() if name in drawn)
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


def reported(results: dict[str, Any]) -> dict[str, str]:
    """Measures that the paper has numbers for, with their labels."""
    known = {m for cell in results["cells"].values() for m in cell["reported"]}
    return {name: m["label"] for name, m in results["measures"].items() if name in known}


def page(study: Study, results: dict[str, Any]) -> str:
    """The page of results with their `findings` (`judge`): numbers with every seed, the paper's beside them, claims,
    verdicts with the rule that made them, and a paragraph per finding."""
    env = Environment(
        loader=PackageLoader("larpo.studies", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(shown=shown, statements=STATEMENTS, paper_text=paper_text, p_text=p_text)
    return env.get_template("page.html.j2").render(
        study=study,
        results=results,
        reported=reported(results),
        figure=figure(study, results),
        paragraphs={finding: paragraph(study, results, finding) for finding in results["findings"]},
    )


def write_page(study: Study, results: dict[str, Any], project: Path) -> Path:
    """Write the page and the results; returns the page's path."""
    name = f"{study.name}-{results['scale']}"
    path = project / PAGES / f"{name}.html"
    write(path, page(study, results))
    write(project / RESULTS / f"{name}.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
