"""The score test of paired shares: against its definition, McNemar's statistic, and its nominal error rate."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from forgetting.analysis.equivalence import equivalence
from forgetting.analysis.paired_shares import PairedShares, paired_shares, score_statistic


def test_the_statistic_is_that_of_the_constrained_maximum_of_the_likelihood() -> None:
    for lost, gained, n, delta in ((12, 5, 100, -0.03), (3, 9, 60, 0.05), (0, 4, 50, -0.1), (20, 20, 80, -0.2)):

        def minus_log_likelihood(
            q: float, lost: int = lost, gained: int = gained, n: int = n, d: float = delta
        ) -> float:
            return -float(stats.multinomial.logpmf([lost, gained, n - lost - gained], n, [q, q + d, 1 - 2 * q - d]))

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = optimize.minimize_scalar(
            minus_log_likelihood, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-12}
        ).x
        expected = ((gained - lost) / n - delta) / np.sqrt((2 * q + delta - delta**2) / n)
        assert score_statistic(lost / n, gained / n, n, delta) == pytest.approx(expected, abs=1e-4)


def test_without_a_difference_it_is_mcnemars_and_without_a_flip_the_variance_is_the_hypothesis_own() -> None:
    assert score_statistic(0.12, 0.05, 100, 0) == pytest.approx((5 - 12) / np.sqrt(17))
    assert score_statistic(0, 0, 50, -0.05) == pytest.approx(0.05 / np.sqrt(0.05 * 0.95 / 50))
    assert score_statistic(0, 0, 50, 0) == 0


def test_the_interval_holds_what_the_test_does_not_reject() -> None:
    before, after = np.repeat([1, 1, 0, 0], [60, 12, 5, 23]), np.repeat([1, 0, 1, 0], [60, 12, 5, 23])
    shares = paired_shares(before, after)
    assert (shares.lost, shares.gained, shares.n, shares.effective, shares.df) == (0.12, 0.05, 100, 100, 99)
    low, high = shares.interval(0.95)
    assert low < shares.difference < high
    assert shares.p_not_above(low) == pytest.approx(0.025) and shares.p_not_below(high) == pytest.approx(0.025)
    assert shares.p_equal() == pytest.approx(2 * stats.t.sf(7 / np.sqrt(17), 99))
    assert paired_shares([1], [0]).interval() == (-1, 1)
    everything = paired_shares(np.zeros(30), np.ones(30)).interval()
    assert everything[1] == 1 and 0.7 < everything[0] < 1


def test_clusters_count_as_units_and_strata_count_the_same() -> None:
    before = np.ones(200)
    after = np.repeat(np.arange(20) % 5 > 0, 10).astype(float)  # four of twenty contexts are lost whole
    labels = np.repeat(np.arange(20), 10)
    clustered = paired_shares(before, after, clusters=labels)
    assert clustered.effective == pytest.approx(20) and clustered.df == 19 and clustered.clusters == 20
    assert paired_shares(before, before, clusters=labels).effective == pytest.approx(20)
    parts = np.repeat([0, 1], [40, 160])
    uneven = paired_shares(before, np.where(parts == 0, np.arange(200) % 2, 1.0), strata=parts)
    assert uneven.difference == pytest.approx(-0.25)  # half of one part, nothing of the other
    assert uneven.effective <= 4 / (1 / 40 + 1 / 160)
    even = paired_shares(before, before, strata=np.repeat(np.arange(4), 50))
    assert even.effective == pytest.approx(200)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"after: holds 1\.5"):
        paired_shares([0, 1], [0, 1.5])
    with pytest.raises(ValueError, match="one label for each of 2 items"):
        paired_shares([0, 1], [0, 1], clusters=[1])


def draws(generator: np.random.Generator, n: int, lost: float, gained: float, times: int) -> NDArray[np.float64]:
    return generator.multinomial(n, [lost, gained, 1 - lost - gained], size=times) / n


def test_a_loss_of_the_margin_is_called_retained_at_the_nominal_rate_where_t_is_not() -> None:
    """2.2 standard errors above 5%; the t test's own size is computed beside it, on the same margin."""
    generator, margin, times = np.random.default_rng(0), 0.05, 20_000
    bound = 0.05 + 2.2 * np.sqrt(0.05 * 0.95 / times)
    for n in (60, 100, 200, 1000):
        critical = stats.t.isf(0.05, n - 1)
        for gained in (0.0, 0.01, 0.05, 0.15):
            shares = draws(generator, n, margin + gained, gained, times)
            z = score_statistic(shares[:, 0], shares[:, 1], n, -margin)
            assert (z > critical).mean() < bound, (n, gained)
    few = draws(generator, 100, margin, 0.0, 300)
    called = [
        equivalence(np.ones(100), 1 - (np.arange(100) < round(100 * lost)), margin, "items").equivalent
        for lost, _, _ in few
    ]
    assert stats.binomtest(sum(called), 300, 0.05, "greater").pvalue < 1e-3


def test_the_interval_covers_of_clustered_items() -> None:
    generator = np.random.default_rng(1)
    labels, missed, times = np.repeat(np.arange(40), 5), 0, 300
    for _ in range(times):
        lost = generator.beta(0.5, 4.5, size=40)[labels] > generator.random(200)
        low, high = paired_shares(np.ones(200), 1.0 - lost, clusters=labels).interval()
        missed += not low <= -0.1 <= high
    assert stats.binomtest(missed, times, 0.05, "greater").pvalue > 0.01
    assert PairedShares(0.0, 0.0, 10, 10, 0).p_not_above(-0.5) == 1.0


def test_a_mean_over_strata_of_unequal_size_is_called_retained_at_about_the_nominal_rate() -> None:
    """The whole loss is in a small stratum, whose few flips say little of its spread."""
    generator, times, margin = np.random.default_rng(2), 1000, 0.03
    sizes = [60, 2000, 2000]
    strata, before = np.repeat(np.arange(3), sizes), np.zeros(sum(sizes))
    for other, gained in ((0.02, 0.0), (0.0, 0.0), (0.0, 0.02)):  # flips each way in the large ones, in the small one
        called = 0
        for _ in range(times):
            parts = []
            for n, lost, rises in zip(sizes, (3 * margin, 0.0, 0.0), (gained, other, other), strict=True):
                fell, rose, _ = (draws(generator, n, lost + rises, rises, 1)[0] * n).round().astype(int)
                parts.append(np.repeat([-1.0, 1.0, 0.0], [fell, rose, n - fell - rose]))
            change = np.concatenate(parts)
            shares = paired_shares(before + (change < 0), before + (change > 0), strata=strata)
            called += shares.p_not_above(-margin) <= 0.05
        assert stats.binomtest(called, times, 0.055, "greater").pvalue > 0.01, (other, gained)
