"""Claims and verdicts: a sentence that runs can contradict, and what an interval says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from forgetting.analysis.stats import Interval

Outcome = Literal["holds", "fails", "undecided", "not run"]


@dataclass(frozen=True)
class Claim:
    """What a paper says, as a sentence that runs can contradict.

    Attributes:
        key: Unique in its study.
        sentence: Testable: what is compared, and which way it must come out.
        paper: Authors, year, and identifier.
        published: The paper's own figure, with its unit and setting; empty where it gives none.
    """

    key: str
    sentence: str
    paper: str
    published: str = ""


@dataclass(frozen=True)
class Verdict:
    """What our runs say of a claim.

    Attributes:
        claim: Its key.
        outcome: Computed, never typed.
        ours: The numbers behind it, with unit, interval, level and n, in words.
    """

    claim: str
    outcome: Outcome
    ours: str


class Limits(Protocol):
    """An interval, of whatever statistic: NaN where there is none."""

    @property
    def low(self) -> float:
        """Lower limit."""

    @property
    def high(self) -> float:
        """Upper limit."""


def decide(interval: Limits, above: float = 0.0) -> Outcome:
    """``holds`` where a whole interval lies above a value, ``fails`` where it lies below, else ``undecided``."""
    if interval.low > above:
        return "holds"
    return "fails" if interval.high < above else "undecided"


def decide_below(interval: Limits, below: float = 0.0) -> Outcome:
    """:func:`decide` for a claim that something is smaller than a value."""
    opposite: dict[Outcome, Outcome] = {"holds": "fails", "fails": "holds"}
    outcome = decide(interval, below)
    return opposite.get(outcome, outcome)


def decide_within(interval: Limits, margin: float) -> Outcome:
    """``holds`` where a whole interval lies within ±margin, ``fails`` where none of it does, else ``undecided``.

    With a 90 % interval over seeds this is :func:`forgetting.analysis.equivalence.equivalence` at 5 % (Schuirmann
    1987), whose p-values a claim does not need; here any interval will do, of whatever statistic.
    """
    if -margin < interval.low and interval.high < margin:
        return "holds"
    return "fails" if interval.low > margin or interval.high < -margin else "undecided"


def decide_all(samples: Sequence[ArrayLike], above: float = 0.0, level: float = 0.95) -> tuple[Outcome, Interval]:
    """Decide a claim that each of several means over seeds lies above a value.

    It holds where every interval does (an intersection-union test, which needs no correction), and fails where one
    lies below at the level that Bonferroni gives each; the extreme one is never picked first and tested then.

    Args:
        samples: Of each mean, a number per seed.
        above: The value.
        level: Of the intervals.

    Returns:
        The outcome, and the interval of the least mean.
    """
    from forgetting.analysis.stats import seed_interval

    intervals = [seed_interval(values, level) for values in samples]
    least = min(intervals, key=lambda interval: interval.mean)
    if all(decide(interval, above) == "holds" for interval in intervals):
        return "holds", least
    corrected = 1 - (1 - level) / len(intervals)
    if any(decide(seed_interval(values, corrected), above) == "fails" for values in samples):
        return "fails", least
    return "undecided", least


def told(interval: Interval, scale: float = 100.0, unit: str = "points") -> str:
    """An interval in words: ``-3.1 points (95% over seeds: -4.0 to -2.2, n = 3)``."""
    if math.isnan(interval.mean):
        return f"? {unit} (undefined in some of n = {interval.n} {interval.kind})"
    if math.isnan(interval.low):
        return f"{scale * interval.mean:.3g} {unit} (no interval, n = {interval.n})"
    return (
        f"{scale * interval.mean:.3g} {unit} ({100 * interval.level:g}% over {interval.kind}: "
        f"{scale * interval.low:.3g} to {scale * interval.high:.3g}, n = {interval.n})"
    )
