"""How much of the spread of results is due to a factor (the order of the tasks), and how much to the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """The one-way random-effects model, value = μ + level + seed, of a levels with n seeds each.

    Attributes:
        share: Of the variance that is due to the level, σ_level² / (σ_level² + σ_seed²); below 0, to −1 / (n − 1),
            where the levels' means vary less than seeds alone would make them.
        low, high: Limits of its interval.
        F: Mean square between levels over that within, with a − 1 and a (n − 1) degrees of freedom.
        p: Probability of an F as great where the level does not matter.
    """

    share: float
    low: float
    high: float
    F: float
    p: float


def variance_components(values: Sequence[ArrayLike], level: float = 0.95) -> VarianceComponents:
    """Split the variance of a balanced one-way layout; the share is the intraclass correlation ICC(1,1).

    share = (F − 1) / (F + n − 1), with the exact interval under normal effects, in which F is divided by the quantiles
    of the F distribution (Shrout & Fleiss 1979, Intraclass correlations: uses in assessing rater reliability).

    Args:
        values: Per level the result of each seed, a of shape (n,).
        level: Confidence level.

    Returns:
        The components; all NaN for n = 1, and where no value differs from another.

    Raises:
        ValueError: if there are fewer than two levels, they differ in n, a value is not finite, or the confidence
            level is not between 0 and 1.
    """
    from scipy import stats

    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    groups = [np.asarray(group, dtype=np.float64) for group in values]
    shapes = sorted({group.shape for group in groups})
    if len(groups) < 2 or len(shapes) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise ValueError(f"values: {len(groups)} levels of shapes {shapes}; need two or more, all of one shape (n,)")
    table = np.stack(groups)
    if not np.isfinite(table).all():
        raise ValueError(f"values: hold {table[~np.isfinite(table)][0]}; need finite numbers")
    a, n = table.shape
    if n == 1 or np.ptp(table) == 0:
        return VarianceComponents(*[float("nan")] * 5)
    between = n * table.mean(axis=1).var(ddof=1)
    within = table.var(axis=1, ddof=1).mean()
    F = float(between / within) if within else np.inf

    def share(ratio: float) -> float:
        return (ratio - 1) / (ratio + n - 1) if np.isfinite(ratio) else 1.0

    tail = (1 + level) / 2
    return VarianceComponents(
        share=share(F),
        low=share(F / float(stats.f.ppf(tail, a - 1, a * (n - 1)))),
        high=share(F * float(stats.f.ppf(tail, a * (n - 1), a - 1))),
        F=F,
        p=float(stats.f.sf(F, a - 1, a * (n - 1))),
    )
