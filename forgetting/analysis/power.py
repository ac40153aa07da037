"""Power: how many seeds a difference needs, or items; and what a study of a given size can find.

Each answer needs a guess of how much the differences vary. A pilot study gives one, a rough one: from three seeds it
is below half of the true standard deviation in 22% of cases. All tests are those of
:mod:`forgetting.analysis.significance` and :mod:`forgetting.analysis.equivalence`; items are taken as
independent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forgetting.analysis.equivalence import check_error_rate, check_margin
from forgetting.analysis.samples import Kind, check_probability

MOST = 10**8
"""Seeds or items beyond which an answer is refused: nobody has them."""


@dataclass(frozen=True, slots=True)
class SampleSize:
    """How many seeds or items a test needs.

    Attributes:
        test: Which test it is for.
        kind: What is counted.
        n: The number.
        power: The power that n has; n − 1 has less than ``target``, or is too small for the test.
        target: The power that was asked for.
        alpha: The test's error rate.
    """

    test: Literal["paired t", "TOST", "McNemar"]
    kind: Kind
    n: int
    power: float
    target: float
    alpha: float


def difference_power(n: int, difference: float, sd: float, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test.

    P(|T| > t_{n−1, 1−α/2}) with T noncentral t, n − 1 degrees of freedom, noncentrality difference √n / sd.

    Args:
        n: Pairs, at least 2.
        difference: True mean of the differences.
        sd: True standard deviation of the differences, in the same unit.
        alpha: Error rate.

    Raises:
        ValueError: if n is below 2, sd is not above 0, or alpha is not between 0 and 1.
    """
    from scipy import stats

    _check(n, 2, sd)
    check_probability("alpha", alpha)
    critical = stats.t.isf(alpha / 2, n - 1)
    shift = abs(difference) * n**0.5 / sd
    # Both tails of T are upper tails, of noncentrality ± shift; scipy is inaccurate in the far lower one.
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift))


def equivalence_power(n: int, margin: float, sd: float, difference: float = 0.0, alpha: float = 0.05) -> float:
    """Power of TOST: how often the 1 − 2α interval lies within ±margin, where the difference is what it is.

    Given the sample's standard deviation s = sd · u, the mean must fall between −margin + t s/√n and margin −
    t s/√n; that probability is integrated over u = χ_{n−1} / √(n−1) (Phillips 1990; it is Owen's Q).

    Args:
        n: Pairs, at least 2.
        margin: Of the test, above 0.
        sd: True standard deviation of the differences, in the margin's unit.
        difference: True mean of the differences; at ±margin the power is the test's size.
        alpha: Error rate, below ½.

    Raises:
        ValueError: if n is below 2, margin or sd is not above 0, or alpha is not between 0 and ½.
    """
    from scipy import special, stats

    _check(n, 2, sd)
    check_margin(margin)
    check_error_rate(alpha)
    df, critical, unit = n - 1, float(stats.t.isf(alpha, n - 1)), n**0.5 / sd

    def inside(chi: float) -> float:
        half = critical * chi / df**0.5
        return float(
            special.ndtr((margin - difference) * unit - half) - special.ndtr((-margin - difference) * unit + half)
        )

    spread = stats.chi(df)
    start, stop = float(spread.ppf(1e-12)), float(spread.isf(1e-12))
    stop = min(stop, margin * unit * df**0.5 / critical)  # beyond, no mean is near enough
    return float(spread.expect(inside, lb=start, ub=stop)) if stop > start else 0.0


def flips_power(n: int, lost: float, gained: float, alpha: float = 0.05) -> float:
    """Power of McNemar's exact test: Σ_d P(d flips) P(it rejects with d flips).

    d is Binomial(n, lost + gained), and the gained among them Binomial(d, gained / (lost + gained)).

    Args:
        n: Items, at least 1.
        lost: Share of all items that are right before and wrong after.
        gained: Share of all items that are wrong before and right after.
        alpha: Error rate.

    Raises:
        ValueError: if n is below 1, a share is negative, both are 0 or above 1 together, or alpha is not
            between 0 and 1.
    """
    from scipy import stats

    _check(n, 1, 1.0)
    _check_flips(lost, gained)
    check_probability("alpha", alpha)
    flipping = lost + gained
    d = np.arange(stats.binom.ppf(1e-12, n, flipping), stats.binom.isf(1e-12, n, flipping) + 1)
    # The largest count of the rarer flip at which the two-sided p-value, twice its lower tail, is at most alpha.
    quantile = stats.binom.ppf(alpha / 2, d, 0.5)
    count = np.where(stats.binom.cdf(quantile, d, 0.5) <= alpha / 2 * (1 + 1e-12), quantile, quantile - 1)
    share = gained / flipping
    rejects = stats.binom.cdf(count, d, share) + stats.binom.cdf(count, d, 1 - share)
    return float((stats.binom.pmf(d, n, flipping) * rejects).sum())


def seeds_for_difference(difference: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> SampleSize:
    """How many seeds the paired t test needs to find a difference, with probability ``power``.

    Args:
        difference: Mean difference to be found, not 0.
        sd: Standard deviation over seeds of the paired differences, in the same unit.
        power: Between 0 and 1.
        alpha: Error rate.

    Raises:
        ValueError: if an argument is out of its range, or more than ``MOST`` are needed.
    """
    if not 0 < abs(difference) < float("inf"):
        raise ValueError(f"difference: {difference} is 0, as the null hypothesis says, or not finite")
    n, reached = _smallest(lambda n: difference_power(n, difference, sd, alpha), power, 2)
    return SampleSize("paired t", "seeds", n, reached, power, alpha)


def seeds_for_equivalence(
    margin: float, sd: float, difference: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> SampleSize:
    """How many seeds TOST needs to show that a difference is within ±margin, with probability ``power``.

    Args:
        margin: Of the test, above 0.
        sd: Standard deviation over seeds of the paired differences, in the margin's unit.
        difference: The true one, within the margin. 0 is the hope; a small loss is the safer plan.
        power: Between 0 and 1.
        alpha: Error rate, below ½.

    Raises:
        ValueError: if an argument is out of its range, or more than ``MOST`` are needed.
    """
    n, reached = _equivalence_size(margin, sd, difference, power, alpha)
    return SampleSize("TOST", "seeds", n, reached, power, alpha)


def items_for_flips(lost: float, gained: float, power: float = 0.8, alpha: float = 0.05) -> SampleSize:
    """How many items McNemar's exact test needs to tell lost from gained, with probability ``power``.

    The test's size jumps with n and its power may dip by a little where n grows by one: n is a number that has the
    power where n − 1 has not, and within a few items of the first such.

    Args:
        lost: Share of all items that are right before and wrong after.
        gained: Share of all items that are wrong before and right after.
        power: Between 0 and 1.
        alpha: Error rate.

    Raises:
        ValueError: if an argument is out of its range, the shares are equal, or more than ``MOST`` are needed.
    """
    _check_flips(lost, gained)
    if lost == gained:
        raise ValueError(f"lost and gained: are both {lost}, as the null hypothesis says; no number of items tells")
    n, reached = _smallest(lambda n: flips_power(n, lost, gained, alpha), power, 1)
    return SampleSize("McNemar", "items", n, reached, power, alpha)


def items_for_equivalence(
    margin: float, lost: float, gained: float, power: float = 0.8, alpha: float = 0.05
) -> SampleSize:
    """How many right-or-wrong items TOST needs to show that accuracy changed by less than a margin.

    An item's difference is −1, 0 or 1 with mean gained − lost and variance lost + gained − (gained − lost)²: two
    models of equal accuracy that flip 20% of the items need ten times as many as two that flip 2%.

    Args:
        margin: Of the test, above 0, as a share.
        lost: Share of all items that are right before and wrong after.
        gained: Share of all items that are wrong before and right after.
        power: Between 0 and 1.
        alpha: Error rate, below ½.

    Raises:
        ValueError: if an argument is out of its range, all items flip the same way, |gained − lost| is not
            below the margin, or more than ``MOST`` are needed.
    """
    _check_flips(lost, gained)
    difference = gained - lost
    n, reached = _equivalence_size(margin, (lost + gained - difference**2) ** 0.5, difference, power, alpha)
    return SampleSize("TOST", "items", n, reached, power, alpha)


def _equivalence_size(margin: float, sd: float, difference: float, power: float, alpha: float) -> tuple[int, float]:
    check_margin(margin)
    if not abs(difference) < margin:
        raise ValueError(f"difference: {difference} is not within ±{margin}; what is not equivalent cannot be shown so")
    return _smallest(lambda n: equivalence_power(n, margin, sd, difference, alpha), power, 2)


def _smallest(power_of: Callable[[int], float], target: float, start: int) -> tuple[int, float]:
    """Return an n, at least start, at which the power reaches the target first, and that power."""
    check_probability("power", target)
    below, n = start, start
    while power_of(n) < target:
        if n > MOST:
            raise ValueError(f"power: {target} needs more than {MOST} pairs")
        below, n = n, 2 * n
    n = bisect_left(range(n), True, lo=below, hi=n, key=lambda m: power_of(m) >= target)
    return n, power_of(n)


def _check(n: int, least: int, sd: float) -> None:
    if n < least:
        raise ValueError(f"n: {n} is below {least}")
    if not 0 < sd < float("inf"):
        raise ValueError(f"sd: {sd} is not above 0")


def _check_flips(lost: float, gained: float) -> None:
    if not (lost >= 0 and gained >= 0 and 0 < lost + gained <= 1):
        raise ValueError(f"lost and gained: are {lost} and {gained}; need shares of all items that are not both 0")
