"""Plasticity–retention fronts: a method is a curve over its strength, and no single number ranks two that cross."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(points: ArrayLike) -> NDArray[np.int64]:
    """Return the indices of the points that no other dominates, by increasing first coordinate.

    A point dominates another if it is at least as good in every coordinate and better in one; greater is better.
    Of equal points all are kept.

    Args:
        points: (N, D), finite.

    Raises:
        ValueError: if the shape is another or a coordinate is not finite.
    """
    array = _points(points)
    no_worse = (array[:, None] >= array[None]).all(-1)  # [i, j]: i is at least as good as j everywhere
    better = (array[:, None] > array[None]).any(-1)
    front = np.flatnonzero(~(no_worse & better).any(0))
    return front[np.lexsort(array[front].T[::-1])]


def hypervolume(points: ArrayLike, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Return the area that two-dimensional points dominate above a reference (Zitzler & Thiele 1998).

    Args:
        points: (N, 2), for instance learning accuracy and retention; points not above the reference add nothing.
        reference: The corner that the area is counted from.

    Raises:
        ValueError: if the shape is another or a coordinate is not finite.
    """
    array = _points(points)
    if array.shape[1] != 2:
        raise ValueError(f"points: have {array.shape[1]} coordinates; the hypervolume is of two")
    above = np.maximum(array - np.asarray(reference), 0.0)
    front = above[pareto_front(above)] if len(above) else above
    widths = np.diff(front[:, 0], prepend=0.0)
    return float((widths * front[:, 1]).sum())


def retention_at(points: ArrayLike, plasticity: float) -> float:
    """Return the retention of a method's curve at a plasticity, linear between the points of its front.

    Args:
        points: (N, 2): plasticity and retention at N strengths.
        plasticity: Where the curve is read.

    Returns:
        The retention; NaN where no strength reaches that plasticity. Left of the front it is the front's first:
        who learns more and keeps as much has at least that.

    Raises:
        ValueError: if the shape is another or a coordinate is not finite.
    """
    array = _points(points)
    front = array[pareto_front(array)]
    if plasticity > front[-1, 0]:
        return float("nan")
    return float(np.interp(plasticity, front[:, 0], front[:, 1]))


def retention_between(points: ArrayLike, low: float, high: float) -> float:
    """Return the mean of :func:`retention_at` over the plasticities from ``low`` to ``high``, by exact integration.

    Where the hypervolume counts steps between the points, and so depends on how close they lie, this reads the curve
    between them: two methods whose strengths have different scales can be compared by it.

    Args:
        points: (N, 2): plasticity and retention at N strengths.
        low: Where the range begins.
        high: Where it ends, above ``low``; both within what is compared.

    Returns:
        The mean retention; NaN where no strength reaches ``high``.

    Raises:
        ValueError: if the shape is another, a coordinate is not finite, or ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"low: {low} is not below high = {high}; give a range of plasticities")
    array = _points(points)
    bends = array[pareto_front(array), 0]
    read = np.unique([low, high, *bends[(low < bends) & (bends < high)]])  # the curve is straight between these
    return float(np.trapezoid([retention_at(array, x) for x in read], read) / (high - low))


def matched_gain(one: ArrayLike, other: ArrayLike, low: float) -> float:
    """Return what one method retains more than another at the same plasticities, on average.

    Args:
        one: (N, 2): plasticity and retention at N strengths.
        other: (M, 2): those of the method that it is compared with.
        low: Where the comparison begins; it ends at the highest plasticity that both reach.

    Returns:
        The difference of :func:`retention_between`; NaN where one of the two does not get beyond ``low``.

    Raises:
        ValueError: if a shape is another or a coordinate is not finite.
    """
    first, second = _points(one), _points(other)
    high = min(first[:, 0].max(), second[:, 0].max())
    if not low < high:
        return float("nan")
    return retention_between(first, low, high) - retention_between(second, low, high)


def _points(points: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"points: have shape {array.shape}; need (N, D) finite numbers")
    return array
