"""What intervals and tests are computed from: values over seeds or items, pairs of them, and clusters of items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["seeds", "items"]

_ROUNDING = 1e-10  # a standard error below this share of the largest value is rounding, not variation


@dataclass(frozen=True, slots=True)
class MeanError:
    """A mean with what a t interval or a t test of it needs.

    Attributes:
        mean: In the values' unit.
        error: Standard error of the mean; NaN with one value or one cluster, 0 where values do not vary.
        df: Degrees of freedom: independent units − 1.
        n: Values.
        clusters: Their groups; ``None`` where each value is a unit of its own.
    """

    mean: float
    error: float
    df: int
    n: int
    clusters: int | None


def one_axis(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return the values as a vector of floats.

    Raises:
        ValueError: if they have another number of axes, or there is none.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: have shape {array.shape}; need one axis and at least one value")
    return array


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless a level, an error rate or a power is between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}: {value} is not between 0 and 1")


def differences(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """Return ``after − before`` of pairs, shape (n,).

    Raises:
        ValueError: if the shapes differ or are empty.
    """
    first, second = one_axis("before", before), one_axis("after", after)
    if first.shape != second.shape:
        raise ValueError(f"before and after: have shapes {first.shape} and {second.shape}; pairs need equal ones")
    return second - first


def finite_differences(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """Return ``after − before`` of pairs without gaps: a test must know its n.

    Raises:
        ValueError: if the shapes differ or are empty, or a value is not finite.
    """
    array = differences(before, after)
    if not np.isfinite(array).all():
        missing = int((~np.isfinite(array)).sum())
        raise ValueError(f"before and after: {missing} of {array.size} pairs are not finite; leave them out")
    return array


def cluster_sums(values: NDArray[np.float64], clusters: ArrayLike) -> NDArray[np.float64]:
    """Return the sum of the values of each cluster, in the order of the sorted labels, shape (G,).

    Args:
        values: Shape (n,).
        clusters: One label per value, numbers or strings, shape (n,).

    Raises:
        ValueError: if there is not one label per value.
    """
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise ValueError(f"clusters: have shape {labels.shape}; need {values.shape}, one label per item")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, weights=values).astype(np.float64)


def mean_error(values: NDArray[np.float64], clusters: ArrayLike | None = None) -> MeanError:
    """Mean, standard error and degrees of freedom of values, independent or in clusters.

    Without clusters the error is s / √n with n − 1 degrees of freedom. With G clusters it is cluster-robust
    (Cameron & Miller 2015, J. Human Resources 50(2); for evaluations Miller 2024, arXiv 2411.00640): with
    e_g = Σ_{i in g} (x_i − mean),

        error² = G/(G−1) Σ_g e_g² / n²,    df = G − 1.

    For clusters of one value that is s / √n, for clusters of equal size the error of the mean of their means.

    Args:
        values: Shape (n,).
        clusters: One label per value, shape (n,).

    Raises:
        ValueError: if there is not one label per value.
    """
    n, mean = values.size, float(values.mean())
    residuals = values - mean if clusters is None else cluster_sums(values - mean, clusters)
    units = residuals.size
    error = float("nan")
    if units > 1:
        error = float(np.sqrt(units / (units - 1) * (residuals**2).sum())) / n
        if error <= _ROUNDING * np.abs(values).max():
            error = 0.0
    return MeanError(mean, error, units - 1, n, None if clusters is None else units)


def check_kind(kind: Kind, clusters: ArrayLike | None) -> None:
    """Raise ValueError where the kind is neither of the two, or clusters are given of seeds."""
    if kind not in ("seeds", "items"):
        raise ValueError(f"kind: {kind!r} is neither 'seeds' nor 'items'")
    if kind == "seeds" and clusters is not None:
        raise ValueError("clusters: group items that share a context; seeds are independent of each other")
