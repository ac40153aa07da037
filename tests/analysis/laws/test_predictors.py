"""Qualities against resamples written out point by point, and intervals against predictors that are equally good."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.laws import compare_predictors
from forgetting.analysis.laws.predictors import _copies, _powers, _statistics


def _by_hand(y: np.ndarray, x: np.ndarray, labels: np.ndarray, copies: np.ndarray, degree: int) -> list[float]:
    """R², rank correlation and cross-validated error of one resample, its points copied and fitted by numpy."""
    times = copies[labels].astype(int)
    where = np.repeat(np.arange(len(y)), times)
    fitted = np.polyval(np.polyfit(x[where], y[where], degree), x[where])
    r2 = 1 - np.sum((y[where] - fitted) ** 2) / np.sum((y[where] - y[where].mean()) ** 2)
    errors = []
    for group in np.unique(labels[where]):
        kept, out = where[labels[where] != group], where[labels[where] == group]
        errors += list(y[out] - np.polyval(np.polyfit(x[kept], y[kept], degree), x[out]))
    rank = stats.spearmanr(x[where], y[where]).statistic
    return [float(r2), float(rank), float(np.sqrt(np.mean(np.square(errors))))]


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_resamples_are_what_they_are_by_hand(degree: int, grouped: bool) -> None:
    generator = np.random.default_rng(0)
    x = np.round(generator.gamma(2.0, size=24), 1) + 3.0  # with ties
    y = x**2 + generator.normal(scale=3.0, size=24)
    labels = np.arange(24) // 3 if grouped else np.arange(24)
    count = int(labels.max()) + 1
    design = _powers(x, degree)
    copies = _copies({"x": design}, labels, count, 15, generator)
    assert (copies[0] == 1).all() and (copies.sum(axis=1) == count).all() and len(copies) > 10
    got = _statistics(y, x, design, labels, copies)
    expected = [_by_hand(y, x, labels, row, degree) for row in copies]
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_resamples_that_determine_nothing_are_not_used() -> None:
    x = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])  # a parabola needs three values when any one point is left out
    y = x**2 + np.array([0.1, -0.1, 0.0, 0.1, -0.1, 0.0])
    found = compare_predictors(y, {"x": x}, reference="x", resamples=500)
    drawn = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=500)
    usable = 0
    for row in drawn:
        usable += all(np.unique(np.delete(x, k).repeat(np.delete(row, k))).size >= 3 for k in np.flatnonzero(row))
    assert found.resamples == usable and 0 < usable < 500
    assert np.isfinite([found.quality["x"].cv_rmse.low, found.quality["x"].cv_rmse.high]).all()
    assert drawn[0][3:].min() == 0  # the first resample lacks a value
    with pytest.raises(ValueError, match="resamples: none of 1 determines every polynomial"):
        compare_predictors(y, {"x": x}, reference="x", resamples=1)


def test_the_true_predictor_wins_and_says_so() -> None:
    generator = np.random.default_rng(1)
    kl = generator.gamma(2.0, size=40)
    forgetting = 0.1 * kl + 0.05 * kl**2 + generator.normal(scale=0.05, size=40)
    predictors = {
        "kl_forward": kl,
        "kl_reverse": kl * np.exp(generator.normal(scale=0.4, size=40)),
        "l2": generator.gamma(2.0, size=40),
    }
    found = compare_predictors(forgetting, predictors, reference="kl_forward", resamples=400)
    best, middle, worst = (found.quality[name] for name in predictors)
    assert best.r2.value > middle.r2.value > worst.r2.value
    assert set(found.differences) == {"kl_reverse", "l2"}
    for name in ("kl_reverse", "l2"):
        difference = found.differences[name]
        assert difference.r2.value == pytest.approx(found.quality[name].r2.value - best.r2.value)
        assert difference.r2.high < 0 and difference.rank.high < 0 and difference.cv_rmse.low > 0
    assert (found.points, found.groups, found.degree, found.reference) == (40, 40, 2, "kl_forward")


def test_equal_predictors_do_not_differ_in_any_resample() -> None:
    generator = np.random.default_rng(2)
    x = generator.gamma(2.0, size=15)
    y = x + generator.normal(size=15)
    found = compare_predictors(y, {"nats": x, "bits": x / np.log(2)}, reference="nats", resamples=50)
    for part in (found.differences["bits"].r2, found.differences["bits"].rank, found.differences["bits"].cv_rmse):
        assert (part.value, part.low, part.high) == pytest.approx((0, 0, 0), abs=1e-9)
    assert found.quality["bits"].r2.high > found.quality["bits"].r2.low


def test_intervals_of_differences_hold_nothing_as_often_as_they_say() -> None:
    """Two equally noisy copies of the truth differ by 0 in the long run."""
    generator = np.random.default_rng(3)
    runs, covered = 150, np.zeros(3)
    for _ in range(runs):
        truth = generator.normal(size=40)
        a, b, noise = generator.normal(scale=0.5, size=(3, 40))
        found = compare_predictors(
            truth + noise, {"a": truth + a, "b": truth + b}, reference="a", degree=1, resamples=150, level=0.9
        ).differences["b"]
        covered += [part.low <= 0 <= part.high for part in (found.r2, found.rank, found.cv_rmse)]
    # percentile intervals of 40 points are near their level, not at it: 4 points are allowed beside the binomial error
    few, many = stats.binom.interval(0.999, runs, 0.86)[0], stats.binom.interval(0.999, runs, 0.94)[1]
    assert (few <= covered).all() and (covered <= many).all(), covered


def test_groups_that_repeat_each_other_are_not_evidence() -> None:
    """Every point five times, as a group of its own, says what one copy says; as points it says far too much."""
    generator = np.random.default_rng(4)
    x = generator.normal(size=12)
    y = x + generator.normal(size=12)
    z = x + generator.normal(size=12)
    once = compare_predictors(y, {"x": x, "z": z}, reference="x", degree=1, resamples=300)
    repeated = {"x": np.repeat(x, 5), "z": np.repeat(z, 5)}
    groups = np.repeat(np.arange(12), 5)
    whole = compare_predictors(np.repeat(y, 5), repeated, reference="x", degree=1, groups=groups, resamples=300)
    alone = compare_predictors(np.repeat(y, 5), repeated, reference="x", degree=1, resamples=300)
    assert whole.groups == 12 and alone.groups == 60
    assert whole.quality["x"].cv_rmse.value == pytest.approx(once.quality["x"].cv_rmse.value)

    def width(found: object) -> float:
        part = found.differences["z"].r2  # type: ignore[attr-defined]
        return float(part.high - part.low)

    assert width(whole) > 1.5 * width(alone)


def test_bad_arguments_are_named() -> None:
    y = np.arange(8.0)
    with pytest.raises(ValueError, match="reference: 'kl' is none of x"):
        compare_predictors(y, {"x": y}, reference="kl")
    with pytest.raises(ValueError, match=r"x: has shape \(7,\)"):
        compare_predictors(y, {"x": y[1:]}, reference="x")
    with pytest.raises(ValueError, match="predictors: 'forgetting' is what is predicted"):
        compare_predictors(y, {"forgetting": y}, reference="forgetting")
    with pytest.raises(ValueError, match="x: takes 2 distinct values; need at least 4"):
        compare_predictors(y, {"x": y % 2}, reference="x")
    with pytest.raises(ValueError, match="forgetting: takes 1 distinct values; need at least 2"):
        compare_predictors(0 * y, {"x": y}, reference="x")
    with pytest.raises(ValueError, match="groups: 2 for degree 2; need at least 5"):
        compare_predictors(y, {"x": y}, reference="x", groups=[0, 0, 0, 0, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="groups: 3 for 8 points"):
        compare_predictors(y, {"x": y}, reference="x", groups=[0, 1, 2])
    with pytest.raises(ValueError, match="resamples: 0 is not positive"):
        compare_predictors(y, {"x": y}, reference="x", resamples=0)
    with pytest.raises(ValueError, match="degree: 0 is not 1 or 2"):
        compare_predictors(y, {"x": y}, reference="x", degree=0)
    with pytest.raises(ValueError, match="x: takes too few distinct values to fit degree 2 without one group"):
        # without the last group x is 4 alone
        compare_predictors(y, {"x": np.maximum(y, 4)}, reference="x", groups=[0, 1, 2, 3, 4, 5, 5, 5])
