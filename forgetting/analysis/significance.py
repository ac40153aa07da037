"""Tests of a mean difference between pairs, of item flips, and Holm's correction for several of them.

All are two-sided, and name what they sampled: a p-value over items speaks of one model and other items, one over
seeds of other runs. Which to take:

| pairs | test | what it assumes |
|---|---|---|
| few seeds | :func:`paired_t` | normal differences; the only one that can be significant with under 6 |
| six seeds or more | :func:`paired_permutation` | differences symmetric about 0 where there is no effect |
| many seeds or items | :func:`paired_bootstrap` | n large; no symmetry |
| right-or-wrong items | :func:`mcnemar` | independent items |
| items that share a context | :func:`paired_t`, :func:`paired_permutation` | independent clusters |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.samples import Kind, check_kind, cluster_sums, finite_differences, mean_error, one_axis
from forgetting.analysis.stats import RESAMPLED_VALUES, RESAMPLES

EXACT_UNITS = 15
"""Up to this many independent units all 2ⁿ assignments of signs are enumerated."""


@dataclass(frozen=True, slots=True)
class MeanTest:
    """A two-sided test of the hypothesis that the mean of ``after − before`` is 0.

    Attributes:
        test: Its name.
        kind: What was sampled.
        difference: Mean of ``after − before``, in the values' unit.
        statistic: Student's t of ``paired t`` and ``paired bootstrap``, the mean of ``sign flip``.
        p_value: NaN where the test is undefined: see each test.
        n: Pairs.
        clusters: Groups of items taken as one unit; ``None`` where pairs were.
        resamples: Drawn at random; 0 where the p-value is exact or in closed form.
    """

    test: Literal["paired t", "sign flip", "paired bootstrap"]
    kind: Kind
    difference: float
    statistic: float
    p_value: float
    n: int
    clusters: int | None = None
    resamples: int = 0


@dataclass(frozen=True, slots=True)
class FlipTest:
    """McNemar's exact two-sided test: are items lost as often as gained?

    Attributes:
        lost: Items right before and wrong after, n₁₀.
        gained: The reverse, n₀₁.
        n: Items.
        p_value: Of ``gained`` under Binomial(``lost + gained``, ½); 1 where no item flipped.
    """

    lost: int
    gained: int
    n: int
    p_value: float


def paired_t(before: ArrayLike, after: ArrayLike, kind: Kind, clusters: ArrayLike | None = None) -> MeanTest:
    """Student's t test of the mean difference, t = mean / error with n − 1 degrees of freedom.

    Args:
        before: Items or seeds, shape (n,).
        after: The same ones in the same order, shape (n,).
        kind: Which of the two.
        clusters: The context of each item, shape (n,): error and degrees of freedom are then those of
            :func:`~forgetting.analysis.samples.mean_error`.

    Returns:
        With the p-value NaN where there is one unit or the differences do not vary: there is no t.

    Raises:
        ValueError: if the shapes differ or are empty, a value is not finite, or clusters are given of seeds.
    """
    from scipy import stats

    check_kind(kind, clusters)
    estimate = mean_error(finite_differences(before, after), clusters)
    t = estimate.mean / estimate.error if estimate.error > 0 else float("nan")
    p_value = float(2 * stats.t.sf(abs(t), estimate.df)) if estimate.df else float("nan")
    return MeanTest("paired t", kind, estimate.mean, t, p_value, estimate.n, estimate.clusters)


def paired_permutation(before: ArrayLike, after: ArrayLike, kind: Kind, clusters: ArrayLike | None = None) -> MeanTest:
    """Sign-flip test of the mean difference (Fisher 1935): where nothing differs, each pair's order is arbitrary.

    Exact over all 2ⁿ assignments of signs up to n = 15, beyond that over 9,999 random ones with the observed
    one counted among them (Phipson & Smyth 2010), from a fixed seed. The p-value cannot fall below 2^(1−n):
    .25 with 3 seeds, .0625 with 5, .031 with 6. No test of this kind finds anything at .05 in five seeds.

    Args:
        before: Items or seeds, shape (n,).
        after: The same ones in the same order, shape (n,).
        kind: Which of the two.
        clusters: The context of each item, shape (n,): all of a cluster's differences flip together, and n
            above is the number of clusters.

    Raises:
        ValueError: if the shapes differ or are empty, a value is not finite, or clusters are given of seeds.
    """
    from scipy import stats

    check_kind(kind, clusters)
    array = finite_differences(before, after)
    units = array if clusters is None else cluster_sums(array, clusters)
    exact = units.size <= EXACT_UNITS
    # Sums that are equal but for rounding must tie: scores with few decimals have many that are.
    size = float(np.abs(units).sum()) or 1.0
    if units.size == 1:  # scipy wants two; either sign is as far from 0
        p_value = 1.0
    else:
        p_value = float(
            stats.permutation_test(
                (units,),
                lambda sums, axis: np.round(sums.sum(axis=axis) / size, 10),
                permutation_type="samples",
                vectorized=True,
                n_resamples=2**units.size if exact else RESAMPLES,
                batch=max(1, RESAMPLED_VALUES // (2 * units.size)),  # it holds both signs of each
                rng=np.random.default_rng(0),
            ).pvalue
        )
    mean = float(array.mean())
    groups = None if clusters is None else units.size
    return MeanTest("sign flip", kind, mean, mean, p_value, array.size, groups, 0 if exact else RESAMPLES)


def paired_bootstrap(before: ArrayLike, after: ArrayLike, kind: Kind) -> MeanTest:
    """Bootstrap test of the mean difference: resample pairs from the differences moved to mean 0.

    p = (1 + #{|t*| ≥ |t|}) / (1 + 9,999), the resamples from a fixed seed, each studentised: t* = mean / (s / √n)
    (Efron & Tibshirani 1993, chapter 16; Hall 1992 for the symmetric form). Resampling the plain mean rejects
    too often, as it takes the normal quantile for Student's and n for n − 1. Pairs are taken as independent,
    and as dozens at least: of few seeds, many resamples repeat one value.

    Args:
        before: Items or seeds, shape (n,).
        after: The same ones in the same order, shape (n,).
        kind: Which of the two.

    Returns:
        With the p-value NaN where there is one pair or the differences do not vary.

    Raises:
        ValueError: if the shapes differ or are empty, or a value is not finite.
    """
    from scipy import stats

    check_kind(kind, None)
    array = finite_differences(before, after)
    estimate = mean_error(array)
    t = p_value = float("nan")
    if estimate.error > 0:
        generator, moved = np.random.default_rng(0), array - estimate.mean
        t = estimate.mean / estimate.error
        p_value = float(
            stats.monte_carlo_test(
                array,
                lambda size: generator.choice(moved, size),
                _distance,
                vectorized=True,
                n_resamples=RESAMPLES,
                batch=max(1, RESAMPLED_VALUES // array.size),
                alternative="greater",
            ).pvalue
        )
    return MeanTest("paired bootstrap", kind, estimate.mean, t, p_value, array.size, resamples=RESAMPLES)


def _distance(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """|t| along an axis; infinite where a resample repeats one value, which is as far from 0 as can be."""
    error = values.std(axis=axis, ddof=1) / values.shape[axis] ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(values.mean(axis=axis)) / error
    return np.where(np.isnan(t), 0.0, t)


def mcnemar(before: ArrayLike, after: ArrayLike) -> FlipTest:
    """McNemar's exact test on item flips: of the items that flipped, did half go each way?

    Under the null hypothesis ``gained`` is Binomial(``lost + gained``, ½); items that did not flip say
    nothing. It is conservative: its size is below the nominal one. Of items that share a context take
    :func:`paired_permutation` with clusters.

    Args:
        before: Outcomes of one model, 0 or 1, shape (n,).
        after: Outcomes of the other on the same items in the same order, 0 or 1, shape (n,).

    Raises:
        ValueError: if the shapes differ or are empty, or an outcome is neither 0 nor 1.
    """
    from scipy import stats

    array = finite_differences(before, after)
    for name, values in (("before", before), ("after", after)):
        if not np.isin(np.asarray(values, dtype=np.float64), (0.0, 1.0)).all():
            raise ValueError(f"{name}: holds an outcome that is neither 0 nor 1; flips are of right and wrong")
    lost, gained = int((array < 0).sum()), int((array > 0).sum())
    p_value = float(stats.binomtest(gained, lost + gained).pvalue) if lost + gained else 1.0
    return FlipTest(lost, gained, array.size, p_value)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's (1979) adjusted p-values: reject those at most α, and one true hypothesis or more falls in at most α.

    With p sorted upwards, adjusted_i = min(1, max_{j≤i} (m − j + 1) p_j). It holds whatever the tests' dependence.
    scipy corrects for the false discovery rate only (``scipy.stats.false_discovery_control``).

    Args:
        p_values: Of all m tests of the family, shape (m,).

    Returns:
        In the order given, shape (m,).

    Raises:
        ValueError: if there is none, or one is not in [0, 1]; a test that is undefined (NaN) is left out by
            who says what the family is.
    """
    p = one_axis("p_values", p_values)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values: {p[~((p >= 0) & (p <= 1))][0]} is not in [0, 1]")
    order = np.argsort(p)
    steps = np.arange(p.size, 0, -1) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
