"""docs/findings.md, made from every result in studies/results/: nothing in it is written by hand."""

import json
from pathlib import Path
from typing import Any

from larpo.studies.expand import load_study, names
from larpo.studies.page import RESULTS, reported, write
from larpo.studies.results import on_paper
from larpo.studies.spec import Study
from larpo.studies.text import STATEMENTS, paper_text, paragraph, shown

FINDINGS = Path("docs/findings.md")
HEAD = """# Findings

Made by `larpo study` from `studies/results/`; do not edit. How a claim is judged: [studies.md](studies.md#verdicts).
A verdict is about the model and problems of its scale."""
OWN = """## The paper's own numbers

What the claims of scale `paper` come to on the numbers of the paper's tables (its figures print none). *Clearly*:
by more than 1.96 standard errors of a difference, the arms taken as independent. Secondary claims are among them."""
FORMER = """## Results of the former design

These were made before the studies declared their rule: seeds 0 to 9, of which settings were chosen on 0 to 2 and more
were added after looking; the last iteration and 400 problems alone; no margin and no correction. They cannot be judged
by the present study files, so **no verdict stands on them**. Numbers and differences are as they were printed, the
record of where endpoints came from; the verdicts printed then are not repeated."""


def write_findings(project: Path) -> Path:
    """Write the page; results of a study that is gone cannot be explained and are left out."""
    found = [json.loads(p.read_text("utf-8")) for p in sorted((project / RESULTS).glob("*.json"))]
    found = [r for r in found if (project / "studies" / f"{r['study']}.yaml").is_file()]
    studies = {name: load_study(project / "studies", name) for name in {r["study"] for r in found}}
    declared, former = ([r for r in found if ("declaration" in r) is new] for new in (True, False))
    lines = [*HEAD.splitlines(), "", "| finding | study | scale | seeds | verdict |", "| --- | --- | --- | --: | --- |"]
    for finding, statement in STATEMENTS.items():
        rows = [r for r in declared if finding in r["findings"]]
        lines += [
            f"| {finding}: {statement} | [{r['study']}](#{r['study']}-{r['scale']}) | {r['scale']} | "
            f"{len(r['seeds'])} | **{r['findings'][finding]['verdict']}** |"
            for r in rows
        ]
        lines += [] if rows else [f"| {finding}: {statement} | none yet | | | not judged |"]
    for r in declared:
        lines += section(studies[r["study"]], r)
    lines += papers_own(project)
    if former:
        lines += ["", *FORMER.splitlines()]
    for r in former:
        lines += former_section(studies[r["study"]], r)
    path = project / FINDINGS
    write(path, "\n".join(lines) + "\n")
    return path


def papers_own(project: Path) -> list[str]:
    """The claims of scale `paper` on the numbers that the paper prints, a row per finding and study."""
    lines = [
        "",
        *OWN.splitlines(),
        "",
        "| finding | study | claims | agree | contradict |",
        "| --- | --- | --: | --: | --- |",
    ]
    for finding in STATEMENTS:
        for study in [load_study(project / "studies", name) for name in names(project / "studies")]:
            claims = study.claims_at("paper").get(finding, []) if "paper" in study.scales else []
            known = [(c, p) for c in claims if (p := on_paper(study, c, study.scales["paper"].rule))]
            if not known:
                continue
            lost = [f"{c.says} ({p['difference']:+.2f})" for c, p in known if p["says"] == "contradicts"]
            clear = [sum(p["clear"] for _, p in known if p["says"] == says) for says in ("agrees", "contradicts")]
            agree = f"{len(known) - len(lost)}, {clear[0]} clearly"
            against = f"{len(lost)}, {clear[1]} clearly: {'; '.join(lost)}" if lost else "0"
            lines.append(f"| {finding} | {study.name} | {len(known)} | {agree} | {against} |")
    return lines


def anchored(study: Study, r: dict[str, Any]) -> str:
    """Heading of a study's results, where the table links to."""
    return f'<a name="{r["study"]}-{r["scale"]}"></a>{study.title} ({r["study"]}, {r["scale"]})'


def section(study: Study, r: dict[str, Any]) -> list[str]:
    """One study's numbers, and per finding the paragraph and the claims."""
    whose, differs = f"{study.paper} of the paper" if study.paper else "Not in the paper", study.differs.get(r["scale"])
    lines = ["", f"## {anchored(study, r)}", "", f"{whose}. {study.about}", "", *([differs, ""] if differs else [])]
    seeds = f"Seeds {r['seeds'][0]} to {r['seeds'][-1]}; mean and 95 % interval."
    lines += [f"{seeds} Code of commit {', '.join(r['commits'])}; {r['run_seconds']} s in all runs.", "", *table(r)]
    for finding, found in r["findings"].items():
        lines += ["", f"{finding} **{found['verdict']}**. {paragraph(study, r, finding)}", ""]
        for claim in found["claims"]:
            holds = {True: "holds", False: "does not hold", None: "open"}[claim["holds"]]
            difference = shown(claim["difference"], claim["percent"])
            on_paper = f"; on the paper's numbers {paper_text(claim)}" if claim["paper"] else ""
            lines.append(f"- {claim['says']}: {difference}, {claim['verdict']}, {holds}{on_paper}")
    return lines


def former_section(study: Study, r: dict[str, Any]) -> list[str]:
    commits = ", ".join(r.get("commits") or ["unknown"])
    lines = ["", f"### {anchored(study, r)}, former design", ""]
    lines += [f"{r['seeds']} seeds; code of commit {commits}; {r['run_seconds']} s.", "", *table(r)]
    claims = [claim for found in r["findings"].values() for claim in found["claims"]]
    lines += [""] if claims else []
    return lines + [f"- {c['says']}: difference {shown(c['difference'], c['percent'])}" for c in claims]


def table(r: dict[str, Any]) -> list[str]:
    """A row per cell; of a single cell a row per measure, which reads better."""
    measures, cells, paper = r["measures"], r["cells"], reported(r)
    head = ["", *(facts["label"] for facts in measures.values()), *(f"paper: {label}" for label in paper.values())]
    rows = [
        [
            cell["label"],
            *(shown(cell["measures"].get(m), facts["percent"]) for m, facts in measures.items()),
            *(f"{cell['reported'][m]:g}" if m in cell["reported"] else "–" for m in paper),
        ]
        for cell in cells.values()
    ]
    if len(rows) == 1:
        head, *rows = [list(pair) for pair in zip(head, rows[0], strict=True)]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' --: |' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
