"""Intervals against the formulas written out, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forgetting.analysis.stats import item_interval, paired_difference, seed_interval


def test_seed_interval_is_students_t():
    got = seed_interval([1.0, 2.0, 4.0])
    # mean 7/3, s² = ((16 + 1 + 25) / 9) / 2 = 7/3; t with 2 degrees of freedom at 0.975 is 4.302652730
    half = 4.302652729911275 * math.sqrt(7 / 3 / 3)
    assert (got.kind, got.n, got.level) == ("seeds", 3, 0.95)
    assert got.mean == pytest.approx(7 / 3)
    assert (got.low, got.high) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert got.half_width == pytest.approx(half)


def test_two_seeds_at_half_level_have_a_closed_form():
    # t with one degree of freedom is Cauchy: its 0.75 quantile is 1, and s/√2 = |a − b| / 2
    got = seed_interval([0.0, 1.0], level=0.5)
    assert (got.low, got.high) == pytest.approx((0.0, 1.0))


def test_one_seed_has_no_interval():
    got = seed_interval([0.5])
    assert got.mean == 0.5 and got.n == 1 and math.isnan(got.low) and math.isnan(got.high)
    assert math.isnan(got.half_width)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (137, 500)])
def test_outcomes_get_wilsons_interval(right, n):
    got = item_interval([1.0] * right + [0.0] * (n - right))
    z, p = 1.959963984540054, right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert got.kind == "items" and got.mean == p
    assert (got.low, got.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)


def test_other_scores_are_bootstrapped_reproducibly():
    items = np.random.default_rng(3).gamma(2.0, size=80)
    got, again = item_interval(items), item_interval(items)
    assert got == again and got.kind == "items" and got.n == 80
    assert got.low < items.mean() < got.high
    # On such a sample BCa lies near the normal interval, moved towards the long tail.
    half = 1.96 * items.std(ddof=1) / math.sqrt(80)
    assert got.high - got.low == pytest.approx(2 * half, rel=0.15)
    assert (got.high + got.low) / 2 > items.mean()


def test_items_that_do_not_vary_have_no_bootstrap_interval():
    for items in ([0.5], [0.5, 0.5, 0.5]):
        got = item_interval(items)
        assert got.mean == 0.5 and math.isnan(got.low) and math.isnan(got.high)


def test_pairing_removes_what_is_shared():
    generator = np.random.default_rng(0)
    shared = generator.normal(size=50)
    before, after = shared, shared + 0.1 + generator.normal(scale=0.01, size=50)
    items = paired_difference(before, after, "items")
    assert items.kind == "items" and 0.09 < items.low < 0.1 < items.high < 0.11
    seeds = paired_difference(before[:3], after[:3], "seeds")
    assert seeds == seed_interval((after - before)[:3])


def test_intervals_of_the_two_kinds_are_never_equal():
    assert seed_interval([0.0, 1.0]).kind != item_interval([0.0, 1.0]).kind


def test_seed_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    intervals = [seed_interval(generator.normal(size=3)) for _ in range(2000)]
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)  # 3 standard errors


@pytest.mark.parametrize("interval", [seed_interval, item_interval])
def test_nothing_and_impossible_levels_are_refused(interval):
    with pytest.raises(ValueError, match="need one axis and at least one value"):
        interval([])
    with pytest.raises(ValueError, match="need one axis and at least one value"):
        interval([[0.5]])
    with pytest.raises(ValueError, match=r"level: 1 is not between 0 and 1"):
        interval([0.5], level=1)


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match=r"have shapes \(2,\) and \(3,\)"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 1.0], "items")
