"""Tests against enumeration and published data, and their size where nothing differs."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis import significance
from forgetting.analysis.significance import holm, mcnemar, paired_bootstrap, paired_permutation, paired_t

# Darwin's maize (Fisher 1935, The Design of Experiments, chapter III): crossed minus self-fertilised, 1/8 inch
MAIZE = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)
NOTHING = np.zeros(15)


def slack(share: float, repeats: int) -> float:
    return 3 * math.sqrt(share * (1 - share) / repeats)


def test_fishers_maize():
    t = paired_t(NOTHING, MAIZE, "items")
    assert t.statistic == pytest.approx(2.148, abs=5e-4) and t.p_value == pytest.approx(0.0497, abs=5e-5)
    flipped = paired_permutation(NOTHING, MAIZE, "items")
    # Fisher counts 863 of the 32,768 assignments of signs with a total of at least 314.
    assert flipped.p_value == pytest.approx(2 * 863 / 32768, rel=1e-12)
    assert (flipped.resamples, flipped.n, flipped.kind) == (0, 15, "items")
    assert flipped.difference == flipped.statistic == t.difference == pytest.approx(314 / 15)


def enumerated(units: np.ndarray) -> float:
    """Two-sided p over all signs, of integers."""
    sums = np.array(list(product([-1, 1], repeat=len(units)))) @ units
    return min(1.0, 2 * min((sums >= units.sum()).mean(), (sums <= units.sum()).mean()))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_sign_flip_is_the_enumeration_also_with_ties_and_rounding(n):
    generator = np.random.default_rng(n)
    for _ in range(10):
        counts = generator.integers(-4, 5, size=n)
        before = generator.integers(10_000, 20_000, size=n) / 100
        got = paired_permutation(before, before + counts / 100, "seeds")  # sums that tie but for rounding
        assert got.p_value == pytest.approx(enumerated(counts), rel=1e-12)


def test_few_seeds_cannot_be_significant_by_flipping_signs():
    for n in (3, 5, 6):
        got = paired_permutation(np.zeros(n), np.full(n, 0.3), "seeds")
        assert got.p_value == pytest.approx(2.0 ** (1 - n))


def test_signs_of_a_cluster_flip_together():
    after = np.array([3.0, 1.0, 2.0, -4.0, 5.0, 6.0])
    got = paired_permutation(np.zeros(6), after, "items", clusters=["a", "a", "b", "b", "c", "d"])
    assert got.p_value == pytest.approx(enumerated(np.array([4, -2, 5, 6])))
    assert got.difference == pytest.approx(13 / 6) and (got.n, got.clusters) == (6, 4)


def test_many_signs_are_drawn_at_random_and_reproducibly():
    generator = np.random.default_rng(0)
    counts = generator.integers(-20, 40, size=17)
    got = paired_permutation(np.zeros(17), counts, "items")
    exact = enumerated(counts)
    assert got.resamples == 9999 and got == paired_permutation(np.zeros(17), counts, "items")
    assert got.p_value == pytest.approx(exact, abs=2 * slack(exact / 2, 9999) + 2 / 10000)


def test_sign_flip_has_its_size():
    generator, n, repeats = np.random.default_rng(1), 7, 1500
    p = [paired_permutation(np.zeros(n), generator.laplace(size=n), "seeds").p_value for _ in range(repeats)]
    # Of 128 assignments 2·3 have p ≤ 0.05: the size is 6/128, not above the nominal one.
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(6 / 128, abs=slack(6 / 128, repeats))


def test_paired_t_is_scipys():
    before, after = np.random.default_rng(2).normal(size=(2, 12))
    want = stats.ttest_rel(after, before)
    got = paired_t(before, after, "seeds")
    assert (got.statistic, got.p_value) == pytest.approx((want.statistic, want.pvalue))
    clustered = paired_t(before, after, "items", clusters=np.repeat(np.arange(4), 3))
    means = stats.ttest_1samp((after - before).reshape(4, 3).mean(1), 0.0)
    assert (clustered.statistic, clustered.p_value) == pytest.approx((means.statistic, means.pvalue))


def test_paired_t_of_clusters_has_its_size():
    generator, repeats = np.random.default_rng(3), 2000
    labels = np.repeat(np.arange(60), np.tile([1, 2, 3, 4], 15))
    rejected = np.zeros(2)
    for _ in range(repeats):
        after = generator.normal(size=60)[labels] + generator.normal(size=labels.size)
        for k, clusters in enumerate((labels, None)):
            rejected[k] += paired_t(np.zeros(labels.size), after, "items", clusters=clusters).p_value <= 0.05
    assert rejected[0] / repeats == pytest.approx(0.05, abs=slack(0.05, repeats))
    assert rejected[1] / repeats > 0.1


def test_bootstrap_is_near_students_t_on_many_normal_pairs():
    generator = np.random.default_rng(4)
    before = generator.normal(size=400)
    after = before + generator.normal(0.1, 1, size=400)
    got, t = paired_bootstrap(before, after, "items"), paired_t(before, after, "items")
    assert got.statistic == t.statistic and got.resamples == 9999
    assert got.p_value == pytest.approx(t.p_value, abs=0.01)
    assert got == paired_bootstrap(before, after, "items")


def test_bootstrap_counts_resamples_as_far_as_the_sample():
    # Of the 27 resamples of three differences 1, 2, 6 moved by 3 to −2, −1, 3, those with |t*| ≥ |t|
    values = np.array([1.0, 2.0, 6.0])
    t = abs(stats.ttest_1samp(values, 0.0).statistic)
    far = 0
    for resample in product(values - 3, repeat=3):
        s = np.std(resample, ddof=1)
        far += (abs(np.mean(resample)) / (s / 3**0.5) if s else math.inf) >= t
    got = paired_bootstrap(np.zeros(3), values, "seeds")
    assert got.p_value == pytest.approx(far / 27, abs=slack(far / 27, 9999) + 1e-4)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_bootstrap_has_its_size(monkeypatch, shape):
    monkeypatch.setattr(significance, "RESAMPLES", 999)
    generator, n, repeats = np.random.default_rng(5), 60, 800
    draw = generator.normal if shape == "normal" else lambda size: generator.gamma(4.0, size=size) - 4.0
    p = [paired_bootstrap(np.zeros(n), draw(size=n), "items").p_value for _ in range(repeats)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=slack(0.05, repeats))


def test_what_does_not_vary_has_no_t():
    for before, after in (([0.5], [0.7]), ([0.85, 0.8, 0.7], [0.8, 0.75, 0.65])):
        for test in (paired_t, paired_bootstrap):
            got = test(before, after, "seeds")
            assert math.isnan(got.p_value) and math.isnan(got.statistic)
            assert got.difference == pytest.approx(np.mean(after) - np.mean(before))


def test_mcnemar_by_hand():
    before = [1] * 1 + [0] * 7 + [1] * 20 + [0] * 4
    after = [0] * 1 + [1] * 7 + [1] * 20 + [0] * 4
    got = mcnemar(before, after)
    assert (got.lost, got.gained, got.n) == (1, 7, 32)
    assert got.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar([1, 0], [1, 0]).p_value == 1.0


@pytest.mark.parametrize(("lost", "gained"), [(0, 5), (2, 9), (4, 4), (10, 3)])
def test_mcnemar_is_the_sign_flip_of_flips(lost, gained):
    before = np.array([1.0] * lost + [0.0] * gained)
    assert mcnemar(before, 1 - before).p_value == pytest.approx(paired_permutation(before, 1 - before, "items").p_value)


def test_mcnemar_has_at_most_its_size():
    flips = np.arange(61)
    rejects = np.array([[_flipped(k, d - k).p_value <= 0.05 if k <= d else False for k in flips] for d in flips])
    by_flips = (rejects * stats.binom.pmf(flips[None], flips[:, None], 0.5)).sum(1)
    assert (by_flips <= 0.05).all() and by_flips.max() > 0.03
    n, flipping = 60, 0.4
    size = float((stats.binom.pmf(flips, n, flipping) * by_flips).sum())
    generator, repeats = np.random.default_rng(6), 1500
    drawn = generator.choice([-1, 0, 1], p=[0.2, 0.6, 0.2], size=(repeats, n))
    p = np.array([_flipped(int((row < 0).sum()), int((row > 0).sum())).p_value for row in drawn])
    assert (p <= 0.05).mean() == pytest.approx(size, abs=slack(size, repeats))


def _flipped(lost: int, gained: int) -> significance.FlipTest:
    before = np.array([1.0] * lost + [0.0] * gained + [1.0])
    after = np.array([0.0] * lost + [1.0] * gained + [1.0])
    return mcnemar(before, after)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([0.2]).tolist() == [0.2]


def test_holm_is_the_closure_of_bonferroni():
    generator = np.random.default_rng(7)
    for m in (2, 4, 6):
        p = np.round(generator.random(m) * 0.3, 2)  # with ties
        subsets = [set(s) for size in range(1, m + 1) for s in combinations(range(m), size)]
        closed = [max(min(1.0, len(s) * min(p[list(s)])) for s in subsets if i in s) for i in range(m)]
        assert holm(p) == pytest.approx(closed)


def test_holm_controls_the_family_wise_error():
    generator, repeats = np.random.default_rng(8), 4000
    # Eight tests that share half their variance, two of them with an effect: a false alarm is one of the other six.
    z = (generator.normal(size=(repeats, 1)) + generator.normal(size=(repeats, 8))) / math.sqrt(2)
    z[:, :2] += 4.0
    p = 2 * stats.norm.sf(np.abs(z))
    corrected = np.mean([(holm(row)[2:] <= 0.05).any() for row in p])
    assert corrected <= 0.05 + slack(0.05, repeats)
    assert ((p[:, 2:] <= 0.05).any(1)).mean() > 0.15
    assert np.mean([holm(row)[0] <= 0.05 for row in p]) > np.mean(p[:, 0] * 8 <= 0.05)  # more powerful than Bonferroni


def test_what_cannot_be_tested_is_refused():
    for test in (paired_t, paired_permutation, paired_bootstrap):
        with pytest.raises(ValueError, match="pairs are not finite"):
            test([0.0, 1.0], [0.0, float("nan")], "items")
        with pytest.raises(ValueError, match="kind: 'runs'"):
            test([0.0, 1.0], [0.0, 1.0], "runs")
    for test in (paired_t, paired_permutation):
        with pytest.raises(ValueError, match="seeds are independent"):
            test([0.0, 1.0], [0.0, 1.0], "seeds", clusters=[0, 1])
    with pytest.raises(ValueError, match="after: holds an outcome that is neither"):
        mcnemar([0.0, 1.0], [0.0, 0.5])
    with pytest.raises(ValueError, match=r"p_values: 1.5 is not in \[0, 1\]"):
        holm([0.1, 1.5])
    with pytest.raises(ValueError, match=r"p_values: nan is not in \[0, 1\]"):
        holm([0.1, float("nan")])
