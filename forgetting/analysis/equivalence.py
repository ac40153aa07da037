"""Equivalence: "no forgetting" is a claim of its own, and a test that found no difference does not make it."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from forgetting.analysis.samples import Kind, check_kind, check_probability, finite_differences, mean_error
from forgetting.analysis.stats import t_limits


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided t tests of a mean difference against a margin.

    Attributes:
        kind: What was sampled.
        difference: Mean of ``after − before``, in the values' unit.
        margin: The largest difference that counts as none, in that unit.
        low, high: The 1 − 2α interval of the difference.
        p_lower: Of the hypothesis that the difference is −margin or less: alone, it is the test of
            non-inferiority ("nothing lost, a gain is welcome") where higher scores are better.
        p_upper: Of the hypothesis that it is margin or more.
        p_value: The larger of the two.
        n: Pairs.
        alpha: Error rate of the verdict.
        equivalent: Whether ``p_value`` is below alpha, that is, the interval lies within ±margin. False
            where it is not shown, which does not show a difference.
        clusters: Groups of items taken as one unit; ``None`` where pairs were.
    """

    kind: Kind
    difference: float
    margin: float
    low: float
    high: float
    p_lower: float
    p_upper: float
    p_value: float
    n: int
    alpha: float
    equivalent: bool
    clusters: int | None = None


def equivalence(
    before: ArrayLike,
    after: ArrayLike,
    margin: float,
    kind: Kind,
    alpha: float = 0.05,
    clusters: ArrayLike | None = None,
) -> Equivalence:
    """TOST (Schuirmann 1987): is the mean of ``after − before`` between −margin and margin?

    p_lower = P(T ≥ (mean + margin) / error) and p_upper = P(T ≤ (mean − margin) / error) with T of Student's
    distribution. The margin is part of the claim: it is named before the differences are seen.

    Args:
        before: Items or seeds, shape (n,).
        after: The same ones in the same order, shape (n,).
        margin: Above 0, in the values' unit.
        kind: Items or seeds.
        alpha: Error rate.
        clusters: The context of each item, shape (n,): error and degrees of freedom are then those of
            :func:`~forgetting.analysis.samples.mean_error`.

    Returns:
        With NaN limits and p-values, and not equivalent, where there is one unit or the differences do not
        vary: they have no standard error, and three equal ones prove little.

    Raises:
        ValueError: if the shapes differ or are empty, a value is not finite, the margin is not above 0, alpha
            is not below ½, or clusters are given of seeds.
    """
    from scipy import stats

    check_kind(kind, clusters)
    check_margin(margin)
    check_error_rate(alpha)
    estimate = mean_error(finite_differences(before, after), clusters)
    lower = upper = low = high = float("nan")
    if estimate.error > 0:
        lower = float(stats.t.sf((estimate.mean + margin) / estimate.error, estimate.df))
        upper = float(stats.t.cdf((estimate.mean - margin) / estimate.error, estimate.df))
        low, high = t_limits(estimate, 1 - 2 * alpha)
    return Equivalence(
        kind=kind,
        difference=estimate.mean,
        margin=margin,
        low=low,
        high=high,
        p_lower=lower,
        p_upper=upper,
        p_value=max(lower, upper),
        n=estimate.n,
        alpha=alpha,
        equivalent=max(lower, upper) < alpha,
        clusters=estimate.clusters,
    )


def check_margin(margin: float) -> None:
    """Raise ValueError unless a margin is above 0 and finite."""
    if not 0 < margin < float("inf"):
        raise ValueError(f"margin: {margin} is not above 0; it is the largest difference that counts as none")


def check_error_rate(alpha: float) -> None:
    """Raise ValueError unless the error rate is between 0 and ½, where a 1 − 2α interval exists."""
    check_probability("alpha", alpha)
    if alpha >= 0.5:
        raise ValueError(f"alpha: {alpha} is not below 0.5; equivalence is read from a 1 − 2α interval")
