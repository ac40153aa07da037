"""Ratios of paired means: an interval, and how much a mean changed as a share of what it was.

Of items whose scores have no natural scale (nats of a text, say) a difference says little by itself: a rise of .03 nats
is much of .3 and little of 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.samples import (
    check_probability,
    cluster_sums,
    finite_differences,
    mean_error,
    one_axis,
)
from forgetting.analysis.stats import Interval


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, level: float = 0.95, clusters: ArrayLike | None = None
) -> Interval:
    """Interval of mean(numerator) / mean(denominator) over paired items (Fieller 1954).

    All ρ for which the mean of numerator − ρ · denominator differs from 0 by at most Student's t standard errors; with
    clusters these are cluster-robust (:func:`forgetting.analysis.samples.mean_error`).

    Args:
        numerator: Shape (n,).
        denominator: Of the same items in the same order, shape (n,).
        level: Confidence level.
        clusters: The context of each item, shape (n,); by default items are independent.

    Returns:
        Of kind ``items``. All NaN where the denominator's mean does not differ from 0 at that level, or there is one
        unit: the quotient would be noise.

    Raises:
        ValueError: if the shapes differ or are empty, a value is not finite, there is not one label per item, or the
            level is not between 0 and 1.
    """
    from scipy import stats

    finite_differences(numerator, denominator)
    check_probability("level", level)
    both = np.stack([one_axis("numerator", numerator), one_axis("denominator", denominator)])  # (2, n)
    n, means = both.shape[1], both.mean(axis=1)
    residuals = both - means[:, None]
    if clusters is not None:
        residuals = np.stack([cluster_sums(row, clusters) for row in residuals])
    units = residuals.shape[1]
    groups, nan = None if clusters is None else units, math.nan
    undefined = Interval("items", nan, nan, nan, n, level, "Fieller", groups)
    if units == 1:
        return undefined
    quantile = float(stats.t.ppf((1 + level) / 2, units - 1)) ** 2
    (above, covariance), (_, below) = quantile * units / (units - 1) * (residuals @ residuals.T) / n**2
    # The limits solve a ρ² − 2 b ρ + c = 0; with a > 0 the denominator differs from 0 and they are finite.
    a = float(means[1] ** 2 - below)
    b = float(means[0] * means[1] - covariance)
    c = float(means[0] ** 2 - above)
    if not a > 0:
        return undefined
    half = math.sqrt(max(b * b - a * c, 0.0))
    limits = (b - half) / a, (b + half) / a
    return Interval("items", float(means[0] / means[1]), *limits, n, level, "Fieller", groups)


@dataclass(frozen=True)
class RelativeChange:
    """mean(after) / mean(before) − 1, of the same items twice.

    A hypothesis on the change, c, is one on a mean, that of z = after − (1 + c) · before, so no approximation of the
    ratio's spread is made. It is tested by Student's t, and by t after Hall's transformation, which removes the
    skewness γ̂ of z (Hall 1992, J. R. Statist. Soc. B 54:221), with G independent units::

        t' = t + γ̂ (2 t² + 1) / (6 √G) + γ̂² t³ / (27 G)

    and the larger p-value counts. Where a few texts rise far more than the others, t alone shows too readily that the
    rise is small: of 62 texts with exponential differences, at 5%, in 8% of samples, the larger of both in 5.4%. Of
    heavy symmetric tails it is t that keeps its level, and Hall's that does not.

    Attributes:
        before, after: A score above 0 per item, shape (n,).
        clusters: The context of each item, shape (n,); ``None`` where items are independent.

    Raises:
        ValueError: if the shapes differ or are empty, a value is not finite, or the mean before is not above 0.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    clusters: list[str] | None = None

    def __post_init__(self) -> None:
        finite_differences(self.before, self.after)
        if not self.before.mean() > 0:
            raise ValueError(f"before: has the mean {self.before.mean():g}; a share of it needs one above 0")

    @property
    def n(self) -> int:
        """Items."""
        return int(self.before.size)

    @property
    def change(self) -> float:
        """The estimate."""
        return float(self.after.mean() / self.before.mean() - 1)

    def interval(self, level: float = 0.95) -> Interval:
        """Fieller's interval of the change (t without Hall's transformation); NaN limits where there is one unit."""
        return ratio_interval(self.after - self.before, self.before, level, self.clusters)

    def p_not_below(self, change: float) -> float:
        """p-value of the hypothesis that the true change is ``change`` or more; 1 where nothing varies."""
        return self._tail(change, -1)

    def p_not_above(self, change: float) -> float:
        """p-value of the hypothesis that the true change is ``change`` or less; 1 where nothing varies."""
        return self._tail(change, 1)

    def p_equal(self) -> float:
        """Two-sided p-value of the hypothesis of no change."""
        return min(1.0, 2 * min(self.p_not_above(0.0), self.p_not_below(0.0)))

    def spread(self, change: float) -> float:
        """Standard deviation that independent items of after − (1 + change) · before with this mean's error have."""
        return mean_error(self._moved(change), self.clusters).error * math.sqrt(self.n)

    def _moved(self, change: float) -> NDArray[np.float64]:
        return np.asarray(self.after - (1 + change) * self.before)

    def _tail(self, change: float, sign: int) -> float:
        from scipy import stats

        values = self._moved(change)
        estimate = mean_error(values, self.clusters)
        if not estimate.error > 0:
            return 1.0
        t, units = estimate.mean / estimate.error, estimate.df + 1
        residuals = values - estimate.mean
        skew = float(stats.skew(residuals if self.clusters is None else cluster_sums(residuals, self.clusters)))
        corrected = t + skew * (2 * t**2 + 1) / (6 * units**0.5) + skew**2 * t**3 / (27 * units)
        return float(stats.t.sf(min(sign * t, sign * corrected), estimate.df))
