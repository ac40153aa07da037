"""A table as data, and how numbers are written in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

NONE = "–"
"""What stands where there is no number: undefined, not measured, or no finished run."""


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        name: Stem of its files.
        caption: What the numbers are, over how many seeds, and the kind of interval.
        columns: Headers; the first is of the rows' names.
        rows: Cells, as many as columns.
    """

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str]]


def number(value: float, digits: int = 1) -> str:
    """A number with a proper minus sign; a dash where it is NaN."""
    if math.isnan(value):
        return NONE
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text[0] == "-" else text).replace("-", "−")


def spread(mean: float, half: float, digits: int = 1) -> str:
    """``mean ± half``, without the half where there is no interval."""
    return number(mean, digits) + ("" if math.isnan(half) or math.isnan(mean) else f" ± {number(half, digits)}")


def large(value: float) -> str:
    """Three digits and a unit prefix: ``4.2 M``."""
    if math.isnan(value):
        return NONE
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"
