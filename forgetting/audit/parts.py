"""What a section of an audit's report is made of: tables, drawings, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forgetting.report.cells import NONE, Table, number
from forgetting.report.style import plain


@dataclass(frozen=True)
class Bars:
    """A drawing of one number per name.

    Attributes:
        title: What is drawn, with its unit.
        rows: Name, length as a share of the longest, and the number as text.
    """

    title: str
    rows: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Scatter:
    """A drawing of points on two axes, each as a position in a plot 560 wide and 300 high.

    Attributes:
        title: What is drawn.
        x, y: Names of the axes, with units.
        ticks_x, ticks_y: Positions and labels.
        points: Position, name, and whether no other is better in both.
        labels: Of those, where they do not cover one another: position, end of the text that is there, name.
    """

    title: str
    x: str
    y: str
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]
    points: list[tuple[float, float, str, bool]]
    labels: list[tuple[float, float, str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: Of its anchor.
        title: Its heading.
        lead: What it says, before its tables.
        facts: Terms and what is said of them, after its tables.
    """

    name: str
    title: str
    lead: str
    tables: list[Table] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    scatter: Scatter | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)


def dash(value: float | None, digits: int) -> str:
    """A number; a dash where there is none."""
    return NONE if value is None else number(value, digits)


def percent(value: float | None) -> str:
    """A share in per cent."""
    return NONE if value is None else number(100 * value)


def bars_of(title: str, values: Mapping[str, float], digits: int) -> Bars:
    """A drawing of numbers by name."""
    longest = max((abs(value) for value in values.values()), default=0) or 1
    return Bars(title, [(plain(name), abs(v) / longest, number(v, digits)) for name, v in values.items()])


def with_limits(interval: Mapping[str, Any], scale: float) -> str:
    """A mean with the limits of its interval."""
    if interval["mean"] is None:
        return NONE
    mean = number(scale * interval["mean"])
    if interval["low"] is None or interval["high"] is None:
        return mean
    return f"{mean} [{number(scale * interval['low'])}, {number(scale * interval['high'])}]"
