"""Effect sizes: differences in units of a standard deviation, with exact intervals by the noncentral t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from forgetting.analysis.samples import (
    Kind,
    check_kind,
    check_probability,
    finite_differences,
    mean_error,
    one_axis,
)

LARGEST_T = 10_000.0
"""Beyond it values hardly vary, and scipy's noncentral t fails."""


@dataclass(frozen=True, slots=True)
class EffectSize:
    """A standardised mean difference.

    Attributes:
        effect: Which one.
        kind: What was sampled.
        value: The estimate, in standard deviations; NaN where there are too few values or they do not vary.
        low, high: Exact limits for normal values; NaN where there is no estimate or |t| is above 10,000.
        n: Pairs, or the values of both groups together.
        level: Confidence level.
    """

    effect: Literal["Hedges' g", "d_z"]
    kind: Kind
    value: float
    low: float
    high: float
    n: int
    level: float


def paired_dz(before: ArrayLike, after: ArrayLike, kind: Kind, level: float = 0.95) -> EffectSize:
    """d_z: mean of ``after − before`` over the standard deviation of the differences (Lakens 2013).

    t = d_z √n of the paired t test is noncentral t with noncentrality δ √n, which gives the limits of δ. It
    grows with how alike a pair is, so it ranks designs as much as effects; it is what a paired test's power
    depends on (:mod:`forgetting.analysis.power`).

    Args:
        before: Items or seeds, shape (n,).
        after: The same ones in the same order, shape (n,).
        kind: Which of the two.
        level: Confidence level.

    Raises:
        ValueError: if the shapes differ or are empty, a value is not finite, or the level is not between 0
            and 1.
    """
    check_kind(kind, None)
    check_probability("level", level)
    estimate = mean_error(finite_differences(before, after))
    root = estimate.n**0.5
    t = estimate.mean / estimate.error if estimate.error > 0 else float("nan")
    low, high = _noncentrality(t, estimate.df, level)
    return EffectSize("d_z", kind, t / root, low / root, high / root, estimate.n, level)


def hedges_g(first: ArrayLike, second: ArrayLike, kind: Kind, level: float = 0.95) -> EffectSize:
    """Hedges' g: mean of ``second`` minus mean of ``first``, over their pooled standard deviation, unbiased.

    For groups that share no pairs (other seeds, other items). g = J d with J = Γ(m/2) / (√(m/2) Γ((m−1)/2)) and
    m = n₁ + n₂ − 2 (Hedges 1981). The limits are those of the population's δ, exact for normal values of equal
    variance: t = d √(n₁n₂ / (n₁+n₂)) is noncentral t with m degrees of freedom.

    Args:
        first: One group, shape (n₁,).
        second: The other, shape (n₂,).
        kind: What both are sampled over.
        level: Confidence level.

    Returns:
        NaN where a group has one value, or neither varies.

    Raises:
        ValueError: if a group is empty or not finite, or the level is not between 0 and 1.
    """
    from scipy import special

    check_kind(kind, None)
    check_probability("level", level)
    groups = one_axis("first", first), one_axis("second", second)
    for name, values in zip(("first", "second"), groups, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: holds a value that is not finite; leave it out")
    errors = [mean_error(values) for values in groups]
    sizes = np.array([values.size for values in groups])
    n, df = int(sizes.sum()), int(sizes.sum()) - 2
    nan = float("nan")
    if sizes.min() < 2 or not max(error.error for error in errors) > 0:
        return EffectSize("Hedges' g", kind, nan, nan, nan, n, level)
    pooled = sum(error.df * error.n * error.error**2 for error in errors) / df  # n error² is the group's variance
    d = (errors[1].mean - errors[0].mean) / pooled**0.5
    scale = float(sizes.prod() / n) ** 0.5
    unbiased = float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2))) / (df / 2) ** 0.5
    low, high = _noncentrality(d * scale, df, level)
    return EffectSize("Hedges' g", kind, unbiased * d, low / scale, high / scale, n, level)


def _noncentrality(t: float, df: int, level: float) -> tuple[float, float]:
    """Limits of the noncentrality: where an observed t has the tail (1 − level) / 2 above it, and below it."""
    from scipy import optimize, stats

    if not abs(t) <= LARGEST_T:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    # T ≤ t where Z + δ ≤ t √(χ²/df): quantiles of Z and χ beyond the tail bracket both roots.
    spread = stats.chi.ppf([tail / 4, 1 - tail / 4], df) / df**0.5
    beyond = float(stats.norm.isf(tail / 4))
    low, high = abs(t) * float(spread[0]) - beyond, abs(t) * float(spread[1]) + beyond

    def excess(noncentrality: float, share: float) -> float:
        return float(stats.nct.cdf(abs(t), df, noncentrality)) - share

    lower = float(optimize.brentq(excess, low, high, args=(1 - tail,)))
    upper = float(optimize.brentq(excess, low, high, args=(tail,)))
    return (lower, upper) if t >= 0 else (-upper, -lower)
