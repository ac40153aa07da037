"""Effect sizes by hand, their intervals against the definition, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from forgetting.analysis.effects import hedges_g, paired_dz


def tail(t: float, df: int, noncentrality: float) -> float:
    """P(T ≤ t) of noncentral t as the integral that defines it: P(Z + δ ≤ t √(χ²/df))."""

    def density(chi: float) -> float:
        return float(stats.chi.pdf(chi, df) * stats.norm.cdf(t * chi / df**0.5 - noncentrality))

    return integrate.quad(density, 0, stats.chi.isf(1e-12, df), epsabs=1e-10, limit=200)[0]


def test_dz_by_hand():
    got = paired_dz([1.0, 1.0, 1.0], [2.0, 3.0, 5.0], "seeds")  # differences 1, 2, 4: mean 7/3, s² = 7/3
    assert got.value == pytest.approx(math.sqrt(7 / 3))
    assert (got.effect, got.kind, got.n, got.level) == ("d_z", "seeds", 3, 0.95)


def test_hedges_g_by_hand():
    # Means 1 and 2, pooled variance 2: d = 1/√2; with two degrees of freedom J = Γ(1) / Γ(½) = 1/√π
    got = hedges_g([0.0, 2.0], [1.0, 3.0], "seeds")
    assert got.value == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert (got.effect, got.n) == ("Hedges' g", 4)
    unequal = hedges_g([0.0, 2.0, 4.0], [5.0, 6.0], "seeds")  # variances 4 and 1/2, pooled 8.5/3; J(3)
    J = math.gamma(1.5) / (math.sqrt(1.5) * math.gamma(1.0))
    assert unequal.value == pytest.approx(J * 3.5 / math.sqrt(8.5 / 3))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_limits_have_the_observed_t_in_their_tails(level):
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    for got, t, df, scale in (
        (paired_dz(first, second, "items", level), stats.ttest_rel(second, first).statistic, 6, math.sqrt(7)),
        (hedges_g(first, second, "items", level), stats.ttest_ind(second, first).statistic, 12, math.sqrt(3.5)),
    ):
        assert tail(t, df, got.low * scale) == pytest.approx((1 + level) / 2, abs=1e-7)
        assert tail(t, df, got.high * scale) == pytest.approx((1 - level) / 2, abs=1e-7)


def test_no_difference_has_normal_limits():
    # T ≤ 0 is Z + δ ≤ 0, whatever the degrees of freedom
    got = paired_dz(np.zeros(4), [1.0, -1.0, 2.0, -2.0], "seeds")
    assert got.value == 0.0
    assert (got.low, got.high) == pytest.approx((-1.959963984540054 / 2, 1.959963984540054 / 2))


def test_sign_follows_the_order():
    first, second = [0.1, 0.5, 0.4], [1.1, 1.3, 0.9]
    for effect in (paired_dz, hedges_g):
        there, back = effect(first, second, "seeds"), effect(second, first, "seeds")
        assert there.value > 0
        assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


def test_large_effects_still_have_limits():
    values = 1.0 + 0.01 * np.array([-1.0, 0.0, 1.0])  # t = 173
    got = paired_dz(np.zeros(3), values, "seeds")
    chi = stats.chi.ppf([0.025, 0.975], 2) / 2**0.5  # nothing but s varies
    assert (got.low, got.high) == pytest.approx(tuple(100 * chi), rel=0.01)
    beyond = paired_dz(np.zeros(3), 1.0 + 1e-6 * np.array([-1.0, 0.0, 1.0]), "seeds")
    assert beyond.value == pytest.approx(1e6) and math.isnan(beyond.low) and math.isnan(beyond.high)


def test_hedges_g_is_unbiased_and_its_interval_covers():
    generator, repeats, delta = np.random.default_rng(1), 800, 1.5
    found = [hedges_g(generator.normal(size=4), generator.normal(delta, 1, size=4), "seeds") for _ in range(repeats)]
    values = np.array([effect.value for effect in found])
    assert values.mean() == pytest.approx(delta, abs=3 * values.std() / math.sqrt(repeats))
    covered = np.mean([effect.low <= delta <= effect.high for effect in found])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / repeats))


def test_dz_interval_covers():
    generator, repeats, delta = np.random.default_rng(2), 800, 1.0
    found = [paired_dz(np.zeros(3), generator.normal(delta, 1, size=3), "seeds", 0.9) for _ in range(repeats)]
    covered = np.mean([effect.low <= delta <= effect.high for effect in found])
    assert covered == pytest.approx(0.9, abs=3 * math.sqrt(0.9 * 0.1 / repeats))


def test_what_does_not_vary_has_no_effect_size():
    for got in (
        paired_dz([0.5], [0.7], "seeds"),
        paired_dz([0.85, 0.8, 0.7], [0.8, 0.75, 0.65], "seeds"),
        hedges_g([0.5], [0.7, 0.8], "seeds"),
        hedges_g([0.5, 0.5], [0.7, 0.7], "seeds"),
    ):
        assert math.isnan(got.value) and math.isnan(got.low) and math.isnan(got.high)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="second: holds a value that is not finite"):
        hedges_g([0.0, 1.0], [0.0, float("nan")], "items")
    with pytest.raises(ValueError, match="pairs are not finite"):
        paired_dz([0.0, 1.0], [0.0, float("nan")], "items")
    with pytest.raises(ValueError, match="level: 1 is not between 0 and 1"):
        paired_dz([0.0, 1.0], [0.0, 2.0], "items", level=1)
    with pytest.raises(ValueError, match="kind: 'runs'"):
        hedges_g([0.0, 1.0], [0.0, 2.0], "runs")
