"""Tables for the terminal, in Markdown and in LaTeX: what they hold can never become markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from forgetting.report.cells import Table
from forgetting.report.contents import headline
from forgetting.report.style import wrapped

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def terminal_table(frame: pd.DataFrame) -> RichTable:
    """The headline table for the terminal (rich); names are text, never markup.

    Args:
        frame: What ``summarise`` returned.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = headline(frame, short=True)
    shown = RichTable(
        caption=Text(table.caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
    )
    for position, column in enumerate(table.columns):
        left = position == 0
        header = Text(column.replace(" ", "\n"))
        shown.add_column(header, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for name, *cells in table.rows:  # two lines per number, so that 80 characters are enough
        shown.add_row(Text(wrapped(name, 24)), *(Text(cell.replace(" ±", "\n±")) for cell in cells))
    return shown


def markdown(table: Table) -> str:
    """A GitHub Markdown table with its caption below; names cannot break out of their cells."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", cell) for cell in cells) + " |"

    rule = "|" + "|".join([" --- ", *[" ---: "] * (len(table.columns) - 1)]) + "|"
    return "\n".join([line(table.columns), rule, *map(line, table.rows), "", table.caption, ""])


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "‖": r"$\Vert$",
    "–": "--",
    "…": r"\ldots{}",
}
"""A character as LaTeX sets it literally, where it is not the character itself."""


def _latex_text(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A LaTeX table environment; it needs booktabs, graphicx, and T1 or Unicode fonts."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_latex_text, cells)) + r" \\"

    open_box, close_box = (r"\resizebox{\textwidth}{!}{%", "}") if len(table.columns) > 9 else (r"\small", "")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex_text(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            open_box,
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            line(table.columns),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}" + close_box,
            r"\end{table}",
            "",
        ]
    )
