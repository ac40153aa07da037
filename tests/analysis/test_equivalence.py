"""TOST against its two t tests, and its size at the margin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.equivalence import equivalence
from forgetting.analysis.stats import seed_interval


def test_tost_is_two_t_tests():
    before, after = np.random.default_rng(0).normal(size=(2, 9))
    got = equivalence(before, after, 0.8, "seeds")
    lower = stats.ttest_1samp(after - before, -0.8, alternative="greater").pvalue
    upper = stats.ttest_1samp(after - before, 0.8, alternative="less").pvalue
    assert (got.p_lower, got.p_upper, got.p_value) == pytest.approx((lower, upper, max(lower, upper)))
    interval = seed_interval(after - before, level=0.9)
    assert (got.low, got.high, got.difference) == pytest.approx((interval.low, interval.high, interval.mean))
    assert (got.kind, got.n, got.margin, got.alpha) == ("seeds", 9, 0.8, 0.05)


def test_two_pairs_in_closed_form():
    # Differences 0 and 2: mean 1, error 1. T with one degree of freedom is Cauchy: P(T ≥ t) = ½ − atan(t)/π
    got = equivalence([0.0, 0.0], [0.0, 2.0], 2.0, "seeds", alpha=0.25)
    assert got.p_lower == pytest.approx(0.5 - math.atan(3) / math.pi)
    assert got.p_value == got.p_upper == pytest.approx(0.25)
    assert (got.low, got.high) == pytest.approx((0.0, 2.0))


def test_verdict_is_whether_the_interval_is_within_the_margin():
    generator = np.random.default_rng(1)
    verdicts = []
    for _ in range(200):
        values = generator.normal(0.2, 1, size=8)
        got = equivalence(np.zeros(8), values, 0.8, "seeds", alpha=0.1)
        assert got.equivalent == (got.low > -0.8 and got.high < 0.8)
        verdicts.append(got.equivalent)
    assert 20 < sum(verdicts) < 180


@pytest.mark.parametrize("side", [-1, 1])
def test_size_is_alpha_at_either_margin(side):
    generator, repeats = np.random.default_rng(2), 3000
    values = generator.normal(side * 2.0, 1, size=(repeats, 6))
    found = np.mean([equivalence(np.zeros(6), row, 2.0, "seeds").equivalent for row in values])
    assert found == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / repeats))


def test_size_is_alpha_with_clusters_and_is_not_without():
    generator, repeats = np.random.default_rng(3), 1500
    labels = np.repeat(np.arange(60), np.tile([1, 2, 3, 4], 15))
    found = np.zeros(2)
    for _ in range(repeats):
        after = 1.0 + generator.normal(size=60)[labels] + 0.5 * generator.normal(size=labels.size)
        for k, clusters in enumerate((labels, None)):
            found[k] += equivalence(np.zeros(labels.size), after, 1.0, "items", clusters=clusters).equivalent
    assert found[0] / repeats == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / repeats))
    assert found[1] / repeats > 0.1


def test_no_difference_found_is_not_no_difference():
    values = np.array([-3.0, 2.5, 0.4, 1.1, -1.2])
    assert stats.ttest_1samp(values, 0.0).pvalue > 0.9
    assert not equivalence(np.zeros(5), values, 1.0, "seeds").equivalent


def test_non_inferiority_is_the_lower_half():
    got = equivalence(np.zeros(4), [1.0, 1.1, 0.9, 1.2], 0.5, "seeds")
    assert got.p_lower < 0.001 < got.p_upper and not got.equivalent


def test_what_does_not_vary_is_not_shown():
    for before, after in (([0.5], [0.5]), ([0.5, 0.6], [0.5, 0.6])):
        got = equivalence(before, after, 0.1, "items")
        assert not got.equivalent and math.isnan(got.p_value) and math.isnan(got.low)
        assert got.difference == 0.0


@pytest.mark.parametrize(
    ("margin", "alpha", "match"),
    [(0.0, 0.05, "margin: 0.0 is not above 0"), (0.1, 0.5, "alpha: 0.5 is not below 0.5"), (0.1, 0, "alpha: 0 is not")],
)
def test_impossible_claims_are_refused(margin, alpha, match):
    with pytest.raises(ValueError, match=match):
        equivalence([0.0, 1.0], [0.0, 1.0], margin, "seeds", alpha=alpha)


def test_pairs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="pairs are not finite"):
        equivalence([0.0, 1.0], [0.0, float("inf")], 0.1, "items")
    with pytest.raises(ValueError, match="seeds are independent"):
        equivalence([0.0, 1.0], [0.0, 1.0], 0.1, "seeds", clusters=[0, 1])
