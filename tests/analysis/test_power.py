"""Power against published values, enumeration, and simulations of the tests themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.equivalence import equivalence
from forgetting.analysis.power import (
    difference_power,
    equivalence_power,
    flips_power,
    items_for_equivalence,
    items_for_flips,
    seeds_for_difference,
    seeds_for_equivalence,
)
from forgetting.analysis.significance import mcnemar


def slack(share: float, repeats: int) -> float:
    return 3 * math.sqrt(share * (1 - share) / repeats)


def test_published_sample_size_of_a_paired_t_test():
    got = seeds_for_difference(0.5, 1.0)  # d_z = 0.5 at 80%: 34 pairs (Cohen 1988; R's pwr gives 33.4)
    assert (got.test, got.kind, got.n, got.target, got.alpha) == ("paired t", "seeds", 34, 0.8, 0.05)
    assert got.power == difference_power(34, 0.5, 1.0) >= 0.8 > difference_power(33, 0.5, 1.0)


@pytest.mark.parametrize(("n", "power"), [(5, 0.10599), (15, 0.66629), (30, 0.93855), (50, 0.99410)])
def test_published_power_of_tost(n, power):
    # One-sample values of NCSS PASS, as in the tests of R's TOSTER
    assert equivalence_power(n, 19.2, 25.4558, -4.0) == pytest.approx(power, abs=5e-6)


@pytest.mark.parametrize(("difference", "n"), [(0.0, 16), (-5.0, 20), (-10.0, 40), (15.0, 152)])
def test_published_sample_size_of_tost(difference, n):
    got = seeds_for_equivalence(20.0, 28.284, difference, power=0.7)
    assert (got.test, got.kind, got.n) == ("TOST", "seeds", n)


@pytest.mark.parametrize(("n", "difference", "alpha"), [(3, 1.5, 0.05), (5, -1.0, 0.1), (12, 0.0, 0.05)])
def test_difference_power_is_what_the_t_test_has(n, difference, alpha):
    repeats = 20_000
    values = np.random.default_rng(n).normal(difference, 2.0, size=(repeats, n))
    rejected = (stats.ttest_1samp(values, 0.0, axis=1).pvalue <= alpha).mean()
    power = difference_power(n, difference, 2.0, alpha)
    assert rejected == pytest.approx(power, abs=slack(power, repeats))
    if not difference:
        assert power == pytest.approx(alpha)


@pytest.mark.parametrize(("n", "difference"), [(3, 0.0), (4, 0.5), (10, 1.0), (10, -2.0)])
def test_equivalence_power_is_what_tost_has(n, difference):
    margin, repeats = 2.0, 20_000
    values = np.random.default_rng(n).normal(difference, 1.5, size=(repeats, n))
    lower = stats.ttest_1samp(values, -margin, axis=1, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, margin, axis=1, alternative="less").pvalue
    power = equivalence_power(n, margin, 1.5, difference)
    assert (np.maximum(lower, upper) < 0.05).mean() == pytest.approx(power, abs=slack(power, repeats))


def test_tost_has_size_alpha_at_the_margin_where_the_other_is_far():
    assert equivalence_power(8, 5.0, 1.0, 5.0) == pytest.approx(0.05, abs=1e-6)
    assert equivalence_power(3, 0.5, 1.0, 0.5) < 0.05
    assert equivalence_power(3, 0.001, 1.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("lost", "gained"), [(0.3, 0.1), (0.0, 0.4), (0.5, 0.5), (0.2, 0.2)])
def test_flips_power_is_the_enumeration(lost, gained):
    n, power = 14, 0.0
    for l in range(n + 1):  # noqa: E741
        for g in range(n + 1 - l):
            before = np.array([1.0] * l + [0.0] * g + [1.0] * (n - l - g))
            after = np.array([0.0] * l + [1.0] * g + [1.0] * (n - l - g))
            if mcnemar(before, after).p_value <= 0.05:
                power += stats.multinomial.pmf([l, g, n - l - g], n, [lost, gained, 1 - lost - gained])
    assert flips_power(n, lost, gained) == pytest.approx(power, abs=1e-10)


def test_rejection_at_exactly_alpha_counts():
    # Five flips one way have p = 2 / 2⁵ exactly
    assert flips_power(5, 0.0, 1.0, alpha=0.0625) == pytest.approx(1.0)
    assert flips_power(5, 0.0, 1.0, alpha=0.0624) == 0.0


@pytest.mark.parametrize(("lost", "gained"), [(0.1, 0.05), (0.0, 0.02), (0.6, 0.4), (0.9, 0.1)])
def test_items_for_flips_are_near_the_first_that_suffice(lost, gained):
    got = items_for_flips(lost, gained)
    assert (got.test, got.kind) == ("McNemar", "items")
    assert got.power >= 0.8 > flips_power(got.n - 1, lost, gained)
    first = next(n for n in range(1, got.n + 1) if flips_power(n, lost, gained) >= 0.8)
    assert got.n - first <= 5


def test_items_for_a_margin_are_what_tost_over_items_needs():
    got = items_for_equivalence(0.06, lost=0.07, gained=0.06)
    assert (got.test, got.kind) == ("TOST", "items")
    generator, repeats = np.random.default_rng(0), 2000
    values = generator.choice([-1.0, 0.0, 1.0], p=[0.07, 0.87, 0.06], size=(repeats, got.n))
    found = np.mean([equivalence(np.zeros(got.n), row, 0.06, "items").equivalent for row in values])
    assert found == pytest.approx(got.power, abs=slack(0.8, repeats))
    # ten times the flips, ten times the items
    few, many = items_for_equivalence(0.02, 0.01, 0.01), items_for_equivalence(0.02, 0.1, 0.1)
    assert many.n / few.n == pytest.approx(10, rel=0.01)


def test_sample_sizes_are_the_smallest():
    def first(power_of):
        return next(n for n in range(2, 10_000) if power_of(n) >= 0.9)

    assert seeds_for_difference(1.0, 1.3, 0.9).n == first(lambda n: difference_power(n, 1.0, 1.3))
    assert seeds_for_equivalence(1.0, 1.3, 0.2, 0.9).n == first(lambda n: equivalence_power(n, 1.0, 1.3, 0.2))
    assert seeds_for_difference(1000.0, 1.0).n == 2


def test_what_no_number_finds_is_refused():
    with pytest.raises(ValueError, match="difference: 0 is 0, as the null hypothesis says"):
        seeds_for_difference(0, 1.0)
    with pytest.raises(ValueError, match="more than 100000000"):
        seeds_for_difference(1e-6, 1.0)
    with pytest.raises(ValueError, match=r"difference: 0.5 is not within ±0.5"):
        seeds_for_equivalence(0.5, 1.0, 0.5)
    with pytest.raises(ValueError, match="are both 0.1"):
        items_for_flips(0.1, 0.1)
    with pytest.raises(ValueError, match="is not within ±0.02"):
        items_for_equivalence(0.02, 0.05, 0.01)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="n: 1 is below 2"):
        difference_power(1, 0.5, 1.0)
    with pytest.raises(ValueError, match="sd: 0.0 is not above 0"):
        equivalence_power(5, 1.0, 0.0)
    with pytest.raises(ValueError, match="margin: -1.0 is not above 0"):
        equivalence_power(5, -1.0, 1.0)
    with pytest.raises(ValueError, match="power: 1.0 is not between 0 and 1"):
        seeds_for_difference(0.5, 1.0, power=1.0)
    with pytest.raises(ValueError, match="alpha: 0 is not between 0 and 1"):
        difference_power(5, 0.5, 1.0, alpha=0)
    for shares in ((0.0, 0.0), (-0.1, 0.2), (0.6, 0.5)):
        with pytest.raises(ValueError, match="need shares of all items"):
            flips_power(10, *shares)
