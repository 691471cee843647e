"""The paper's tables and figures as grids of runs, what is measured in each, and which findings the numbers support.

    studies/NAME.yaml ─► expand ─► runs (parameters) ─► results_of ─► judge ─► page, docs/findings.md

`spec` says what a study declares, `expand` reads it and makes runs, `results` gathers and judges by what `rule` offers,
`page` and `findings` write. All are functions of a study and its runs' records; running is up to flows/study.py.
"""

from larpo.studies.expand import Run, expand, load_study
from larpo.studies.results import judge, results_of
from larpo.studies.spec import Study

__all__ = ["Run", "Study", "expand", "judge", "load_study", "results_of"]
