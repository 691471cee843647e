"""The report: a run's files in, one self-contained HTML page, JSON and CSV out."""
