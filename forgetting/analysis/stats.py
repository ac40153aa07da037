"""Intervals: over seeds, or over items, and never one in place of the other.

An interval over seeds says how much a mean would move if the runs were repeated with other seeds; one over
items, how much it would move with other test items and this very model. Each carries its kind and is labelled
with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["seeds", "items"]

RESAMPLES = 9999
_RESAMPLED_VALUES = 10_000_000  # floats held at once while resampling, 80 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of a mean.

    Attributes:
        kind: What the sampling unit is.
        mean: The estimate, in the values' unit.
        low, high: The limits; NaN where n is too small for an interval, or items do not vary.
        n: Seeds, or items.
        level: Confidence level.
    """

    kind: Kind
    mean: float
    low: float
    high: float
    n: int
    level: float

    @property
    def half_width(self) -> float:
        """Half the width, the ± of a symmetric interval; NaN where there is none."""
        return (self.high - self.low) / 2


def _values(name: str, values: ArrayLike, level: float) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: have shape {array.shape}; need one axis and at least one value")
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    return array


def seed_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean over seeds: mean ± t_{n−1} s / √n, s with n − 1 in the denominator.

    Args:
        values: One number per seed, shape (n,).
        level: Confidence level.

    Returns:
        Of kind ``seeds``; with n = 1 there is no interval and the limits are NaN.

    Raises:
        ValueError: if there is no value, or the level is not between 0 and 1.
    """
    from scipy import stats

    array = _values("values", values, level)
    n, mean = array.size, float(array.mean())
    if n == 1:
        return Interval("seeds", mean, float("nan"), float("nan"), 1, level)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(array.std(ddof=1)) / n**0.5
    return Interval("seeds", mean, mean - half, mean + half, n, level)


def item_interval(items: ArrayLike, level: float = 0.95) -> Interval:
    """Interval of one model's mean score over items.

    Outcomes that are all 0 or 1 get Wilson's (1927) interval; any others the BCa bootstrap (Efron 1987) with
    9,999 resamples from a generator of its own with a fixed seed, so that equal items give equal limits.

    Args:
        items: One outcome per item, shape (n,).
        level: Confidence level.

    Returns:
        Of kind ``items``; the limits are NaN for bootstrapped values that are fewer than two or all equal.

    Raises:
        ValueError: if there is no item, or the level is not between 0 and 1.
    """
    from scipy import stats

    array = _values("items", items, level)
    n, mean = array.size, float(array.mean())
    if np.isin(array, (0.0, 1.0)).all():
        proportion = stats.binomtest(int(array.sum()), n).proportion_ci(level, method="wilson")
        return Interval("items", mean, float(proportion.low), float(proportion.high), n, level)
    return _bootstrap(array, level)


def _bootstrap(array: NDArray[np.float64], level: float) -> Interval:
    from scipy import stats

    n, mean = array.size, float(array.mean())
    if n < 2 or np.ptp(array) == 0:
        return Interval("items", mean, float("nan"), float("nan"), n, level)
    limits = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=max(1, _RESAMPLED_VALUES // n),
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval("items", mean, float(limits.low), float(limits.high), n, level)


def paired_difference(before: ArrayLike, after: ArrayLike, kind: Kind, level: float = 0.95) -> Interval:
    """Interval of the mean of ``after − before``; what a pair shares (an easy item, a lucky seed) cancels.

    Args:
        before: Items scored by one model (kind ``items``), or seeds run under one mitigation (kind
            ``seeds``), shape (n,).
        after: The same items or seeds, in the same order, under the other one, shape (n,).
        kind: Which of the two: Student's t over seeds, BCa bootstrap over items.
        level: Confidence level.

    Raises:
        ValueError: if the shapes differ or are empty, or the level is not between 0 and 1.
    """
    first, second = _values("before", before, level), _values("after", after, level)
    if first.shape != second.shape:
        raise ValueError(f"before and after: have shapes {first.shape} and {second.shape}; pairs need equal ones")
    if kind == "seeds":
        return seed_interval(second - first, level)
    return _bootstrap(second - first, level)
