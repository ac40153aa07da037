"""Ratios of paired means: against a search over all ratios, scipy's tests, and their levels in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.ratios import RelativeChange, ratio_interval


def test_clusters_of_one_are_no_clusters_and_of_copies_are_one_each() -> None:
    generator = np.random.default_rng(0)
    above, below = generator.normal(1, 0.3, 20), generator.normal(2, 0.3, 20)
    plain = ratio_interval(above, below)
    single = ratio_interval(above, below, clusters=list(range(20)))
    assert (plain.low, plain.high) == pytest.approx((single.low, single.high)) and single.clusters == 20
    twice = ratio_interval(np.repeat(above, 2), np.repeat(below, 2), clusters=np.repeat(np.arange(20), 2))
    assert (twice.mean, twice.low, twice.high) == pytest.approx((plain.mean, plain.low, plain.high))
    whole = ratio_interval(above, below, clusters=["all"] * 20)
    assert math.isnan(whole.low) and whole.clusters == 1


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="pairs need equal ones"):
        ratio_interval([1, 2], [1])
    with pytest.raises(ValueError, match="level: 2 is not between"):
        ratio_interval([1, 2], [1, 2], 2)
    with pytest.raises(ValueError, match="clusters: have shape"):
        ratio_interval([1, 2], [1, 2], clusters=["a"])
    with pytest.raises(ValueError, match="before: has the mean 0"):
        RelativeChange(np.array([-1.0, 1.0]), np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="1 of 2 pairs are not finite"):
        RelativeChange(np.array([1.0, 1.0]), np.array([1.0, np.inf]))


def test_of_symmetric_values_it_is_the_t_test_and_the_interval_inverts_it() -> None:
    generator = np.random.default_rng(1)
    half = generator.normal(0, 0.1, 25)
    before = np.ones(50)
    after = 1.02 + np.concatenate([half, -half])  # no skewness
    found = RelativeChange(before, after)
    expected = stats.ttest_1samp(after - 1.05, 0, alternative="less").pvalue
    assert found.p_not_below(0.05) == pytest.approx(expected)
    assert found.p_not_above(0.0) == pytest.approx(stats.ttest_1samp(after - 1, 0, alternative="greater").pvalue)
    assert found.p_equal() == pytest.approx(stats.ttest_1samp(after - 1, 0).pvalue)
    limits = found.interval(0.9)
    assert found.change == pytest.approx(0.02) and found.p_not_below(limits.high) == pytest.approx(0.05)
    assert found.p_not_above(limits.low) == pytest.approx(0.05)


def test_the_unit_does_not_matter_and_what_does_not_vary_proves_nothing() -> None:
    generator = np.random.default_rng(2)
    before = generator.gamma(9, 0.1, 40)
    after = before * (1 + generator.exponential(0.05, 40))
    bits, nats = RelativeChange(before, after), RelativeChange(before * 0.69, after * 0.69)
    for of in ("p_not_below", "p_not_above"):
        assert getattr(bits, of)(0.04) == pytest.approx(getattr(nats, of)(0.04))
    assert bits.change == pytest.approx(nats.change)
    same = RelativeChange(before, before)
    assert same.p_equal() == 1 and same.p_not_below(0.03) < 1e-12
    flat = RelativeChange(np.ones(5), np.full(5, 2.0))
    assert flat.p_equal() == flat.p_not_below(0.5) == flat.p_not_above(0.5) == 1


def halls_t(values: np.ndarray) -> float:
    """Hall 1992, with a = 1/3 and b = 1/6, in his terms: S = mean / s, sums over n."""
    n, spread = values.size, values.std(ddof=1)
    gamma = float(((values - values.mean()) ** 3).mean() / values.std() ** 3)
    s = values.mean() / spread
    return math.sqrt(n) * (s + gamma * s**2 / 3 + gamma**2 * s**3 / 27 + gamma / (6 * n))


def test_the_larger_p_of_t_and_of_halls_transformation_counts() -> None:
    values = np.random.default_rng(3).exponential(1.0, 30) - 1.4
    found = RelativeChange(np.ones(30), 1 + values)
    transformed = stats.t.cdf(halls_t(values), 29)
    assert transformed > stats.ttest_1samp(values, 0, alternative="less").pvalue
    assert found.p_not_below(0.0) == pytest.approx(transformed)


def test_of_exponential_differences_t_alone_errs_too_often_and_this_does_not() -> None:
    """At the margin, 5%, 62 texts of which few rise much: the rate of showing that the rise is smaller."""
    generator, times, n = np.random.default_rng(4), 700, 62
    found = np.zeros(2)
    for _ in range(times):
        before = generator.gamma(25, 0.04, n)
        after = before * (1.03 + 0.04 * (generator.exponential(1.0, n) - 1))
        found += (
            RelativeChange(before, after).p_not_below(0.03) <= 0.05,
            stats.ttest_1samp(after - 1.03 * before, 0, alternative="less").pvalue <= 0.05,
        )
    error = math.sqrt(0.05 * 0.95 / times)
    assert found[0] / times < 0.056 + 3 * error and found[1] / times > 0.05 + 3 * error
