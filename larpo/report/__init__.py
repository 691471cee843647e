"""The report: `ReportData` in, one self-contained HTML page out."""

from larpo.report.data import ReportData
from larpo.report.page import render

__all__ = ["ReportData", "render"]
