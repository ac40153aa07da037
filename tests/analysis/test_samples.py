"""Errors of means, independent and clustered, against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forgetting.analysis.samples import cluster_sums, differences, finite_differences, mean_error


def test_independent_values_have_the_textbook_error():
    got = mean_error(np.array([1.0, 2.0, 4.0]))  # s² = 7/3
    assert (got.mean, got.error) == pytest.approx((7 / 3, math.sqrt(7 / 3 / 3)))
    assert (got.df, got.n, got.clusters) == (2, 3, None)


def test_clustered_values_have_the_robust_error():
    values, labels = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), ["b", "a", "b", "c", "a"]
    # mean 3/5; sums of residuals: a −6/5, b 4/5, c 2/5; error² = 3/2 (36 + 16 + 4)/25 / 25
    got = mean_error(values, labels)
    assert (got.mean, got.error) == pytest.approx((0.6, math.sqrt(1.5 * 56 / 25) / 5))
    assert (got.df, got.n, got.clusters) == (2, 5, 3)
    assert cluster_sums(values, labels).tolist() == [0.0, 2.0, 1.0]


def test_clusters_of_one_and_of_equal_size_are_special_cases():
    values = np.random.default_rng(0).normal(size=(12, 4))
    alone = mean_error(values.ravel(), np.arange(48))
    assert alone.error == pytest.approx(mean_error(values.ravel()).error) and alone.df == 47
    equal = mean_error(values.ravel(), np.repeat(np.arange(12), 4))
    means = mean_error(values.mean(1))
    assert (equal.mean, equal.error, equal.df) == pytest.approx((means.mean, means.error, means.df))


def test_rounding_is_not_variation():
    moved = differences([0.85, 0.8, 0.7], [0.8, 0.75, 0.65])
    assert np.ptp(moved) > 0 and mean_error(moved).error == 0.0
    assert math.isnan(mean_error(np.array([1.0])).error)
    assert math.isnan(mean_error(np.array([1.0, 2.0]), ["a", "a"]).error)


def test_what_is_no_pair_or_no_label_is_refused():
    with pytest.raises(ValueError, match=r"have shapes \(2,\) and \(3,\)"):
        differences([0.0, 1.0], [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="1 of 2 pairs are not finite"):
        finite_differences([0.0, float("nan")], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"clusters: have shape \(1,\); need \(2,\)"):
        mean_error(np.array([0.0, 1.0]), ["a"])
