"""Variance components against a published example, scipy's analysis of variance, and a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.variance import variance_components

SHROUT_FLEISS = [(9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7)]
"""Table 2 of Shrout & Fleiss 1979: six targets, each rated by four judges."""


def test_the_example_of_shrout_and_fleiss() -> None:
    found = variance_components(SHROUT_FLEISS)
    assert found.share == pytest.approx(0.17, abs=0.005)  # ICC(1,1) in their table 4
    assert pytest.approx(11.24 / 6.26, abs=0.002) == found.F  # the mean squares of their table 3
    assert (found.low, found.high) == pytest.approx((-0.133, 0.723), abs=0.001)


def test_f_and_p_are_those_of_the_analysis_of_variance() -> None:
    groups = np.random.default_rng(0).normal(size=(5, 3))
    expected = stats.f_oneway(*groups)
    found = variance_components(groups)
    assert (found.F, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)


def test_the_interval_excludes_no_share_exactly_where_the_f_test_rejects() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        found = variance_components(generator.normal(size=(4, 3)) + 0.7 * generator.normal(size=(4, 1)), level=0.9)
        assert (found.low > 0) == (found.p < 0.05)


def test_the_interval_covers_the_true_share_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    trials, true = 2000, 0.6
    covered = 0
    for _ in range(trials):
        levels = true**0.5 * generator.normal(size=(5, 1))
        found = variance_components(levels + (1 - true) ** 0.5 * generator.normal(size=(5, 3)))
        covered += found.low <= true <= found.high
    assert stats.binomtest(covered, trials, 0.95).pvalue > 1e-3


def test_ends() -> None:
    assert variance_components([[1, 1], [2, 2]]).share == 1
    opposite = variance_components([[0, 1], [1, 0]])
    assert (opposite.share, opposite.F) == (-1, 0)
    for nothing in ([[1], [2]], [[3, 3], [3, 3]]):
        assert np.isnan([variance_components(nothing).share, variance_components(nothing).p]).all()


@pytest.mark.parametrize(
    ("values", "level", "told"),
    [
        ([[1, 2]], 0.95, "values: 1 levels"),
        ([[1, 2], [1, 2, 3]], 0.95, r"shapes \[\(2,\), \(3,\)\]"),
        ([[], []], 0.95, r"shapes \[\(0,\)\]"),
        ([[1, 2], [1, float("nan")]], 0.95, "hold nan"),
        ([[1, 2], [1, 3]], 1.0, "level: 1.0"),
    ],
)
def test_bad_input_is_named(values: list[list[float]], level: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        variance_components(values, level)
