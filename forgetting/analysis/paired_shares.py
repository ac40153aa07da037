"""Shares of the same items, twice: tests and an interval of their difference that hold where few items flip.

Student's t takes the spread of the differences from the sample. Where few of many items flip, that spread is itself
a guess of a few counts: of 100 items of which 5% are truly lost, a t test at 5% shows the loss to be below 5 points
in 12% of samples. The score test (Tango 1998, Statistics in Medicine 17:891) takes the spread that the hypothesis
implies instead, is McNemar's statistic where the hypothesis is no difference, and is defined where nothing flips.

Items that share a context and scores between 0 and 1 enter by their effective number: as many independent
right-or-wrong items as have the estimate's variance (Rao & Scott 1992, Biometrics 48:577). Of strata of equal weight,
each has its own variance under the hypothesis: few flips in a small one do not say that it is exactly known.
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
    return _ratio(gained_ - lost_ - delta, _spread(lost_, gained_, delta) / np.asarray(n, dtype=np.float64))


def _spread(lost: NDArray[np.float64], gained: NDArray[np.float64], delta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of one item's change where gained − lost = δ, at the most likely share lost."""
    linear = (2 - gained + lost) * delta - gained - lost
    root = np.sqrt(np.maximum(linear**2 + 8 * lost * delta * (1 - delta), 0))
    q = (root - linear) / 4
    return np.maximum(2 * q + delta - delta**2, 0)


def _ratio(distance: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
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
        strata: Of several, the share lost, the share gained and the effective number of each; else empty.
    """

    lost: float
    gained: float
    n: int
    effective: float
    df: int
    clusters: int | None = None
    strata: tuple[tuple[float, float, float], ...] = ()

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
        if not self.strata:
            return float(score_statistic(self.lost, self.gained, self.effective, difference))
        # The hypothesis is of the mean of the strata's differences. Each is moved in proportion to its variance,
        # which costs the least likelihood (to second order), and has the spread that its own hypothesis implies.
        lost, gained, n = np.array(self.strata).T
        variance = _smoothed(lost, gained, n)
        move = (difference - self.difference) * variance / variance.mean()
        delta = np.clip(gained - lost + move, -1.0, 1.0)
        pooled = (_spread(lost, gained, delta) / n).sum() / n.size**2
        return float(_ratio(np.asarray(self.difference - difference), pooled))

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
    lost = gained = variance = slots = all_units = 0.0
    each: list[tuple[float, float, float]] = []
    for part in range(count):
        chosen = array[parts == part]
        estimate = mean_error(chosen, None if labels is None else labels[parts == part])
        units = estimate.df + 1
        fell, rose = float(np.maximum(-chosen, 0).mean()), float(np.maximum(chosen, 0).mean())
        lost, gained = lost + fell / count, gained + rose / count
        # With one unit the spread is unknown: the largest that the flips allow.
        spread = estimate.error**2 * (units - 1) / units if units > 1 else fell + rose
        seen = fell + rose - (rose - fell) ** 2
        size = seen / spread if spread > 0 and seen > 0 else units
        if np.isin(chosen, (-1.0, 0.0, 1.0)).all():
            size = min(size, chosen.size)
        each.append((fell, rose, size))
        variance += spread / count**2
        slots, all_units = slots + 1 / units / count**2, all_units + units
    flips = lost + gained - (gained - lost) ** 2
    effective = flips / variance if variance > 0 and flips > 0 else 1 / slots
    if np.isin(array, (-1.0, 0.0, 1.0)).all():
        effective = min(effective, count**2 / sum(1 / float((parts == part).sum()) for part in range(count)))
    return PairedShares(
        lost,
        gained,
        array.size,
        effective,
        int(all_units) - count,
        None if labels is None else int(all_units),
        tuple(each) if count > 1 else (),
    )


def _smoothed(lost: NDArray[np.float64], gained: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variances of differences of shares with half a flip added each way: none seen is not none to be expected."""
    fell, rose = (lost * n + 0.5) / (n + 1), (gained * n + 0.5) / (n + 1)
    return (fell + rose - (rose - fell) ** 2) / n
