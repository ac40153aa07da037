"""Shares of the same items, twice: tests and an interval of their difference that hold where few items flip.

Student's t takes the spread of the differences from the sample. Where few of many items flip, that spread is itself
a guess of a few counts: of 100 items of which 5% are truly lost, a t test at 5% shows the loss to be below 5 points
in 12% of samples. The score test (Tango 1998, Statistics in Medicine 17:891) takes the spread that the hypothesis
implies instead, is McNemar's statistic where the hypothesis is no difference, and is defined where nothing flips.

Items that share a context, strata of equal weight, and scores between 0 and 1 enter by their effective number: as
many independent right-or-wrong items as have the estimate's variance (Rao & Scott 1992, Biometrics 48:577).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.samples import check_probability, finite_differences, mean_error

_EDGE = 1e-9


def score_statistic(lost: ArrayLike, gained: ArrayLike, n: ArrayLike, difference: ArrayLike) -> NDArray[np.float64]:
    """Tango's z of the hypothesis gained − lost = ``difference``; all arguments broadcast.

        z = (g − l − δ) / √((2q + δ − δ²) / n)

    with q the share lost that is most likely where gained − lost = δ: the larger root of
    2 q² + ((2 − g + l) δ − g − l) q − l δ (1 − δ) = 0.

    Args:
        lost: Share of the items that is right before and wrong after, l.
        gained: Share that is wrong before and right after, g.
        n: Items, or their effective number.
        difference: δ, between −1 and 1.

    Returns:
        0 where the hypothesis leaves no variance and is what was seen, ±∞ where it is not.
    """
    lost_, gained_, delta = (np.asarray(value, dtype=np.float64) for value in (lost, gained, difference))
    linear = (2 - gained_ + lost_) * delta - gained_ - lost_
    root = np.sqrt(np.maximum(linear**2 + 8 * lost_ * delta * (1 - delta), 0))
    q = (root - linear) / 4
    variance = np.maximum(2 * q + delta - delta**2, 0) / np.asarray(n, dtype=np.float64)
    distance = gained_ - lost_ - delta
    with np.errstate(divide="ignore", invalid="ignore"):
        z = distance / np.sqrt(variance)
    return np.where(np.isnan(z) | (np.abs(distance) < 1e-15), 0.0, z)


@dataclass(frozen=True, slots=True)
class PairedShares:
    """How the share of right items changed, and how much is known about it.

    Attributes:
        lost: Share of the items that went from right to wrong (of scores: the mean fall).
        gained: The reverse.
        n: Items.
        effective: Independent right-or-wrong items that would have the same variance.
        df: Degrees of freedom of the tests: independent units − 1, of each stratum.
        clusters: Groups of items taken as one unit; ``None`` where items were.
    """

    lost: float
    gained: float
    n: int
    effective: float
    df: int
    clusters: int | None = None

    @property
    def difference(self) -> float:
        """The share right after, minus the share right before."""
        return self.gained - self.lost

    def p_not_above(self, difference: float) -> float:
        """p-value of the hypothesis that the true difference is ``difference`` or less; 1 with one unit."""
        return self._tail(difference, 1)

    def p_not_below(self, difference: float) -> float:
        """p-value of the hypothesis that the true difference is ``difference`` or more; 1 with one unit."""
        return self._tail(difference, -1)

    def p_equal(self) -> float:
        """Two-sided p-value of the hypothesis that the true difference is 0 (McNemar's statistic)."""
        return min(1.0, 2 * min(self.p_not_above(0.0), self.p_not_below(0.0)))

    def _tail(self, difference: float, sign: int) -> float:
        from scipy import stats

        if self.df < 1:
            return 1.0
        return float(stats.t.sf(sign * float(self._z(difference)), self.df))

    def _z(self, difference: float) -> float:
        return float(score_statistic(self.lost, self.gained, self.effective, difference))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The differences that the two-sided test does not reject; (−1, 1) with one unit.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        from scipy import stats

        check_probability("level", level)
        if self.df < 1:
            return -1.0, 1.0
        critical = float(stats.t.ppf((1 + level) / 2, self.df))
        return self._end(1, critical), self._end(-1, critical)

    def _end(self, sign: int, critical: float) -> float:
        """The lower (sign 1) or upper (−1) limit: where the test's statistic is the critical value."""
        from scipy import optimize

        def beyond(difference: float) -> float:
            return sign * self._z(difference) - critical

        edge = -sign * (1 - _EDGE)
        if beyond(edge) <= 0:  # even the end of the scale is not rejected
            return float(-sign)
        return float(optimize.brentq(beyond, min(edge, self.difference), max(edge, self.difference)))


def paired_shares(
    before: ArrayLike, after: ArrayLike, *, clusters: ArrayLike | None = None, strata: ArrayLike | None = None
) -> PairedShares:
    """Compare the scores of the same items, each between 0 and 1, by two models.

    Args:
        before: Scores by one model, shape (n,).
        after: By the other, in the same order, shape (n,).
        clusters: The context of each item, shape (n,): contexts are then what is independent.
        strata: The part (a capability, say) of each item, shape (n,): the shares are means over the parts, each of
            which counts the same. A cluster lies within one.

    Raises:
        ValueError: if shapes differ or are empty, or a score is not in [0, 1].
    """
    array = finite_differences(before, after)
    for name, values in (("before", before), ("after", after)):
        scores = np.asarray(values, dtype=np.float64)
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(f"{name}: holds {scores[(scores < 0) | (scores > 1)][0]}; shares are scores in [0, 1]")
    parts = np.zeros(array.size, dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    labels = None if clusters is None else np.asarray(clusters)
    if parts.shape != array.shape or (labels is not None and labels.shape != array.shape):
        raise ValueError(f"clusters and strata: need one label for each of {array.size} items")
    count = int(parts.max()) + 1
    lost = gained = variance = slots = all_units = flipped = 0.0
    for part in range(count):
        chosen = array[parts == part]
        estimate = mean_error(chosen, None if labels is None else labels[parts == part])
        units = estimate.df + 1
        fell, rose = float(np.maximum(-chosen, 0).mean()), float(np.maximum(chosen, 0).mean())
        lost, gained = lost + fell / count, gained + rose / count
        # With one unit the spread is unknown: the largest that the flips allow.
        spread = estimate.error**2 * (units - 1) / units if units > 1 else fell + rose
        if count > 1:
            # Half a flip each way: a small part in which few were seen would count as exactly known, and the
            # spread of large parts be taken for its own.
            seen = fell + rose - (rose - fell) ** 2
            size = min(seen / spread if spread > 0 and seen > 0 else units, chosen.size)
            fell, rose = (fell * size + 0.5) / (size + 1), (rose * size + 0.5) / (size + 1)
            spread = (fell + rose - (rose - fell) ** 2) / size
        variance, flipped = variance + spread / count**2, flipped + (fell + rose) / count
        slots, all_units = slots + 1 / units / count**2, all_units + units
    flips = flipped - (gained - lost) ** 2
    effective = flips / variance if variance > 0 and flips > 0 else 1 / slots
    if np.isin(array, (-1.0, 0.0, 1.0)).all():
        effective = min(effective, count**2 / sum(1 / float((parts == part).sum()) for part in range(count)))
    return PairedShares(
        lost, gained, array.size, effective, int(all_units) - count, None if labels is None else int(all_units)
    )
