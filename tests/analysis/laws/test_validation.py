"""Errors at held-out points, by hand and against loops written out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from forgetting.analysis.laws import (
    fit_finetuning_loss,
    fit_injection,
    fit_polynomial,
    held_out_error,
    leave_one_group_out,
)

LINE = {"forgetting": [1.0, 2.0, 3.0, 5.0, 8.0], "finetuning_loss": [1.0, 2.0, 3.0, 4.0, 2.5]}


def test_held_out_error_by_hand() -> None:
    # the first three lie on y = x, which predicts 4 for 5 and 2.5 for 8; their mean is 2
    got = held_out_error(
        fit_finetuning_loss, LINE, target="forgetting", held_out=[False, False, False, True, True], extrapolate=True
    )
    assert got.relative == pytest.approx((1 / 5 + 5.5 / 8) / 2)
    assert got.rmse == pytest.approx(((1 + 5.5**2) / 2) ** 0.5)
    assert got.rmse_of_mean == pytest.approx(((3**2 + 6**2) / 2) ** 0.5)
    assert got.points == 2


def test_held_out_points_outside_the_range_are_refused() -> None:
    mask = np.array([False, False, False, True, True])
    with pytest.raises(ValueError, match=r"finetuning_loss: 4\.0 is outside the fitted range \[1\.0, 3\.0\]"):
        held_out_error(fit_finetuning_loss, LINE, target="forgetting", held_out=mask)


def test_a_zero_has_no_relative_error() -> None:
    data = {"forgetting": [1.0, 2.0, 3.0, 0.0], "finetuning_loss": [1.0, 2.0, 3.0, 2.0]}
    got = held_out_error(fit_finetuning_loss, data, target="forgetting", held_out=[False, False, False, True])
    assert np.isnan(got.relative) and got.rmse == pytest.approx(2.0)


def test_leave_one_group_out_is_the_loop() -> None:
    generator = np.random.default_rng(0)
    x = generator.uniform(1, 3, size=18)
    y = x**2 + generator.normal(scale=0.1, size=18)
    groups = ["a", "b", "c"] * 6
    got = leave_one_group_out(fit_polynomial, {"y": y, "predictor": x}, target="y", groups=groups, extrapolate=True)
    errors, from_mean = np.empty(18), np.empty(18)
    for name in "abc":
        out = np.array([group == name for group in groups])
        errors[out] = np.polyval(np.polyfit(x[~out], y[~out], 2), x[out]) - y[out]
        from_mean[out] = y[~out].mean() - y[out]
        assert got.groups[name].rmse == pytest.approx(np.sqrt(np.mean(errors[out] ** 2)))
        assert got.groups[name].points == 6
    assert got.pooled.rmse == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert got.pooled.rmse_of_mean == pytest.approx(np.sqrt(np.mean(from_mean**2)))
    assert got.pooled.relative == pytest.approx(np.mean(np.abs(errors) / y))
    assert got.pooled.points == 18


def test_a_model_size_that_was_not_fitted_is_predicted() -> None:
    D, N, p = (a.ravel() for a in np.meshgrid([1e6, 4e6], [1e7, 1e8, 1e9], [0.0, 0.01, 0.1]))
    base = np.full(18, 3.0)
    data = {"loss": base + 20 * D**0.4 / ((1 + 50 * p) * N) ** 0.5, "base": base, "D": D, "N": N, "p": p}
    got = held_out_error(fit_injection, data, target="loss", held_out=N == 1e9, extrapolate=True)
    assert got.rmse < 1e-8 and got.relative < 1e-8 and got.rmse_of_mean > 0.1
    crossed = leave_one_group_out(fit_injection, data, target="loss", groups=N.tolist(), extrapolate=True)
    assert crossed.pooled.rmse < 1e-8 and set(crossed.groups) == {"10000000.0", "100000000.0", "1000000000.0"}
    with pytest.raises(ValueError, match=r"groups: without '10000000\.0': N: 10000000\.0 is outside"):
        leave_one_group_out(fit_injection, data, target="loss", groups=N.tolist())


def test_a_group_without_which_nothing_can_be_told_is_named() -> None:
    D, p = (a.ravel() for a in np.meshgrid([1e6, 2e6, 4e6, 8e6], [0.0, 0.1]))
    loss = 3 + 1e-3 * D**0.4 / (1 + 50 * p) ** 0.5
    data = {"loss": loss, "base": 0 * D + 3, "D": D, "N": 0 * D + 1, "p": p}
    fit = partial(fit_injection, fixed={"alpha": 0.5})
    with pytest.raises(ValueError, match=r"groups: without '0\.0': B: cannot be identified, p takes one value"):
        leave_one_group_out(fit, data, target="loss", groups=p.tolist(), extrapolate=True)


def test_bad_masks_and_names_are_refused() -> None:
    fit = partial(held_out_error, fit_finetuning_loss, LINE)
    with pytest.raises(ValueError, match="target: 'loss' is none of forgetting, finetuning_loss"):
        fit(target="loss", held_out=[True] * 5)
    with pytest.raises(ValueError, match=r"held_out: is int64 of shape \(5,\); need bool, \(5,\)"):
        fit(target="forgetting", held_out=[0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="held_out: 5 of 5 points"):
        fit(target="forgetting", held_out=[True] * 5)
    with pytest.raises(ValueError, match="held_out: 0 of 5 points"):
        fit(target="forgetting", held_out=[False] * 5)
    with pytest.raises(ValueError, match="groups: 5 of 1 kinds; need 5, of at least two"):
        leave_one_group_out(fit_finetuning_loss, LINE, target="forgetting", groups=["a"] * 5)
    with pytest.raises(ValueError, match="groups: 2 of 2 kinds"):
        leave_one_group_out(fit_finetuning_loss, LINE, target="forgetting", groups=["a", "b"])
