"""Intervals against the formulas written out, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from forgetting.analysis import stats
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


def test_every_interval_names_its_method():
    seeds, scores, labels = [0.1, 0.2, 0.4], [0.5, 0.2, 0.7], ["a", "a", "b"]
    assert [seed_interval(seeds).method, seed_interval(seeds, method="BCa").method] == ["t", "BCa"]
    assert [item_interval([0.0, 1.0]).method, item_interval(scores).method] == ["Wilson", "BCa"]
    clustered = item_interval(scores, clusters=labels)
    assert (clustered.method, clustered.kind, clustered.clusters) == ("cluster-robust t", "items", 2)
    assert item_interval(scores).clusters is None


def test_seeds_can_be_bootstrapped_and_stay_seeds():
    values = np.random.default_rng(4).gamma(2.0, size=30)
    got = seed_interval(values, level=0.9, method="BCa")
    limits = scipy_stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (got.low, got.high) == pytest.approx((limits.low, limits.high))
    assert (got.kind, got.n, got.mean) == ("seeds", 30, pytest.approx(values.mean()))
    for values in ([0.5], [0.5, 0.5], [0.5, float("nan")]):
        none = seed_interval(values, method="BCa")
        assert none.kind == "seeds" and math.isnan(none.low) and math.isnan(none.high)


def covered(n: int, repeats: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    intervals = (seed_interval(generator.normal(size=n), method="BCa") for _ in range(repeats))
    return float(np.mean([i.low <= 0 <= i.high for i in intervals]))


@pytest.mark.parametrize(("n", "share"), [(3, 0.72), (10, 0.9), (150, 0.95)])
def test_bca_covers_as_often_as_its_docstring_says(monkeypatch, n, share):
    monkeypatch.setattr(stats, "RESAMPLES", 999)
    repeats = 600
    assert covered(n, repeats, seed=n) == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / repeats))


def test_wilsons_interval_covers_on_average_over_the_share():
    n = 40
    limits = [item_interval([1.0] * right + [0.0] * (n - right)) for right in range(n + 1)]
    p = np.linspace(0.02, 0.98, 193)
    inside = np.array([(i.low <= p) & (p <= i.high) for i in limits])  # (n+1, P)
    chance = scipy_stats.binom.pmf(np.arange(n + 1)[:, None], n, p)
    assert (inside * chance).sum(0).mean() == pytest.approx(0.95, abs=0.005)


def test_clustered_interval_is_students_t_of_equal_clusters_means():
    scores = np.random.default_rng(5).random((9, 4))
    got = item_interval(scores.ravel(), clusters=np.repeat(np.arange(9), 4))
    means = seed_interval(scores.mean(1))
    assert (got.low, got.high) == pytest.approx((means.low, means.high))
    assert (got.n, got.clusters) == (36, 9)
    order = np.random.default_rng(6).permutation(36)
    again = item_interval(scores.ravel()[order], clusters=np.repeat(list("ihgfedcba"), 4)[order])
    assert (again.low, again.high) == pytest.approx((got.low, got.high))


def test_clustered_interval_covers_where_wilsons_does_not():
    generator = np.random.default_rng(7)
    repeats, groups = 1000, 80
    hits = np.zeros(2)
    for _ in range(repeats):
        labels = np.repeat(np.arange(groups), generator.integers(1, 10, size=groups))
        share = generator.beta(0.6, 0.4, size=groups)[labels]  # 0.6 on average, alike within a context
        items = (generator.random(labels.size) < share).astype(float)
        for k, interval in enumerate((item_interval(items, clusters=labels), item_interval(items))):
            hits[k] += interval.low <= 0.6 <= interval.high
    clustered, independent = hits / repeats
    assert clustered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / repeats))
    assert independent < 0.8


def test_clusters_that_tell_nothing_have_no_interval():
    for values, labels in (([0.0, 1.0, 1.0], ["a", "a", "a"]), ([1.0, 1.0, 1.0], ["a", "b", "b"])):
        got = item_interval(values, clusters=labels)
        assert math.isnan(got.low) and math.isnan(got.high)


def test_differences_of_clustered_items():
    before, after, labels = [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], [0, 0, 1, 2]
    got = paired_difference(before, after, "items", clusters=labels)
    # mean 1/4; sums of residuals 1/2, −5/4, 3/4; error² = 3/2 (1/4 + 25/16 + 9/16) / 16; t_2 at 0.975
    half = 4.302652729911275 * math.sqrt(1.5 * 2.375) / 4
    assert (got.low, got.high) == pytest.approx((0.25 - half, 0.25 + half))
    assert (got.kind, got.method, got.clusters) == ("items", "cluster-robust t", 3)


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


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="method: 'bca' is neither"):
        seed_interval([0.5, 0.6], method="bca")
    with pytest.raises(ValueError, match="kind: 'runs' is neither"):
        paired_difference([0.5, 0.6], [0.5, 0.7], "runs")
    with pytest.raises(ValueError, match="seeds are independent"):
        paired_difference([0.5, 0.6], [0.5, 0.7], "seeds", clusters=[0, 0])
