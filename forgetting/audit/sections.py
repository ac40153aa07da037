"""Drift, behaviour and advice in a verdict, as tables and drawings of the report: from ``verdict.json`` alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from forgetting.audit.schema import Verdict
from forgetting.report.cells import Table


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
class Section:
    """A part of the report.

    Attributes:
        name: Of its anchor.
        title: Its heading.
        lead: One sentence before its tables.
    """

    name: str
    title: str
    lead: str
    tables: list[Table] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)


def sections(verdict: Verdict) -> list[Section]:
    """Return the parts that the verdict has data for."""
    return []
