"""The line against numbers worked out by hand, its limits and refusals."""

from __future__ import annotations

import pytest

from forgetting.analysis.laws import fit_finetuning_loss


def test_line_by_hand() -> None:
    # x̄ = 2, ȳ = 7/3, S_xx = 2, S_xy = −3, S_yy = 14/3: slope −3/2, intercept 16/3, residuals 1/6, −1/3, 1/6
    law = fit_finetuning_loss([4.0, 2.0, 1.0], finetuning_loss=[1.0, 2.0, 3.0], level=0.95)
    assert law.c.value == pytest.approx(1.5) and law.s.value == pytest.approx(16 / 3)
    residual = (1 / 6) ** 0.5  # √((1/36 + 1/9 + 1/36) / 1)
    assert law.residual == pytest.approx(residual)
    assert law.c.stderr == pytest.approx(residual / 2**0.5)
    assert law.s.stderr == pytest.approx(residual * (1 / 3 + 4 / 2) ** 0.5)
    t = 12.706204736432095  # one degree of freedom
    assert (law.c.low, law.c.high) == pytest.approx((1.5 - t * law.c.stderr, 1.5 + t * law.c.stderr))
    assert (law.s.low, law.s.high) == pytest.approx((16 / 3 - t * law.s.stderr, 16 / 3 + t * law.s.stderr))
    assert law.r2 == pytest.approx(9 / (2 * 14 / 3))


def test_prediction_and_its_range() -> None:
    law = fit_finetuning_loss([0.1, 0.4, 0.7, 1.0], finetuning_loss=[2.0, 1.5, 1.0, 0.5])
    assert law.predict(finetuning_loss=[0.5, 1.25]) == pytest.approx([1.0, 0.55])
    with pytest.raises(ValueError, match=r"finetuning_loss: 0\.4 is outside the fitted range \[0\.5, 2\.0\]"):
        law.predict(finetuning_loss=0.4)
    assert float(law.predict(finetuning_loss=0.0, extrapolate=True)) == pytest.approx(1.3)


def test_bad_points_are_refused() -> None:
    with pytest.raises(ValueError, match="c: cannot be identified, finetuning_loss takes one value"):
        fit_finetuning_loss([1.0, 2.0, 3.0], finetuning_loss=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="points: 2 for 2 parameters; need at least 3"):
        fit_finetuning_loss([1.0, 2.0], finetuning_loss=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"finetuning_loss: has shape \(2,\)"):
        fit_finetuning_loss([1.0, 2.0, 3.0], finetuning_loss=[1.0, 2.0])
