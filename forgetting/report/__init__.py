"""Figures, tables and the HTML page, all derived from a study's records."""

from __future__ import annotations

from forgetting.report.build import ReportPaths, write_report
from forgetting.report.summary import aggregate, summarise
from forgetting.report.tables import terminal_table

__all__ = ["ReportPaths", "aggregate", "summarise", "terminal_table", "write_report"]
