"""The paper's tables and figures as grids of runs, what is measured in each, and which findings the numbers support.

    studies/NAME.yaml ─► expand ─► runs (parameters) ─► results ─► page, verdicts

`spec` reads and expands, `results` does the statistics, `page` writes. Running is up to flows/study.py.
"""

from larpo.studies.spec import Run, Study, expand, load_study

__all__ = ["Run", "Study", "expand", "load_study"]
