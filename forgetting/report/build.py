"""Write a study's report: summary, figures, tables and the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from forgetting.report import contents
from forgetting.report.figures import draw_figures
from forgetting.report.page import render_page
from forgetting.report.summary import summarise
from forgetting.report.tables import latex, markdown
from forgetting.results import ResultStore, RunRecord, write_atomically


@dataclass(frozen=True)
class ReportPaths:
    """What a report consists of.

    Attributes:
        summary: ``summary.csv``, a row per run and view.
        figures: PNG and PDF files in ``figures/``.
        tables: Markdown and LaTeX files in ``tables/``.
        page: ``report.html``.
        frame: The summary itself.
    """

    summary: Path
    figures: list[Path]
    tables: list[Path]
    page: Path
    frame: pd.DataFrame


def write_report(folder: Path | str) -> ReportPaths:
    """Write the report of a finished or half-finished study into its folder.

    Runs that failed or are not finished are listed with the reason and left out of all means. The same results
    give the same bytes.

    Args:
        folder: Of a study.

    Raises:
        UsageError: if it holds no study, a record cannot be read, or the folder cannot be written.
    """
    store = ResultStore.existing(folder)
    frame = summarise(store)
    finished: dict[str, list[RunRecord]] = {}
    for record in store.records():
        if record.status == "finished":
            finished.setdefault(record.config.mitigation, []).append(record)

    summary = store.folder / "summary.csv"
    write_atomically(summary, frame.to_csv(index=False, lineterminator="\n").encode())
    figures = draw_figures(finished, frame, store.folder / "figures")
    tables = []
    for table in (contents.headline(frame), contents.costs(frame), contents.differences(frame)):
        for suffix, written in (("md", markdown), ("tex", latex)):
            if table is not None:
                path = store.folder / "tables" / f"{table.name}.{suffix}"
                write_atomically(path, written(table).encode())
                tables.append(path)
    page = store.folder / "report.html"
    write_atomically(page, render_page(store, frame, finished, figures).encode())
    return ReportPaths(
        summary=summary,
        figures=[path for figure in figures for path in (figure.png, figure.pdf)],
        tables=tables,
        page=page,
        frame=frame,
    )
