"""Coefficients and their errors against the normal equations, and against scipy's line."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.laws import fit_finetuning_loss, fit_polynomial


def test_planted_coefficients_are_found() -> None:
    x = np.linspace(0, 2, 7)
    law = fit_polynomial(0.1 - 0.5 * x + 2 * x**2, predictor=x)
    assert [c.value for c in law.coefficients] == pytest.approx([0.1, -0.5, 2.0], rel=1e-9)
    assert law.r2 == pytest.approx(1.0)
    assert float(law.predict(predictor=1.5)) == pytest.approx(0.1 - 0.75 + 4.5)


def test_errors_are_those_of_the_normal_equations() -> None:
    generator = np.random.default_rng(0)
    x = generator.gamma(2.0, size=12)
    y = x**2 + generator.normal(size=12)
    X = np.stack([x**0, x, x**2], axis=1)
    inverse = np.linalg.inv(X.T @ X)
    coefficients = inverse @ X.T @ y
    unexplained = np.sum((y - X @ coefficients) ** 2)
    law = fit_polynomial(y, predictor=x, level=0.9)
    stderr = np.sqrt(unexplained / 9 * np.diag(inverse))
    assert [c.value for c in law.coefficients] == pytest.approx(coefficients, rel=1e-8)
    assert [c.stderr for c in law.coefficients] == pytest.approx(stderr, rel=1e-8)
    half = stats.t.ppf(0.95, 9) * stderr
    assert [c.high for c in law.coefficients] == pytest.approx(coefficients + half, rel=1e-8)
    assert [c.low for c in law.coefficients] == pytest.approx(coefficients - half, rel=1e-8)
    assert law.r2 == pytest.approx(1 - unexplained / np.sum((y - y.mean()) ** 2))


def test_degree_one_is_the_line() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 9))
    law, line = fit_polynomial(y, predictor=x, degree=1), fit_finetuning_loss(y, finetuning_loss=x)
    assert law.coefficients[0].low == pytest.approx(line.s.low)
    assert (law.coefficients[1].value, law.coefficients[1].stderr) == pytest.approx((-line.c.value, line.c.stderr))
    assert law.r2 == pytest.approx(line.r2)


def test_refusals() -> None:
    x = np.arange(6.0)
    law = fit_polynomial(x**2, predictor=x)
    with pytest.raises(ValueError, match=r"predictor: 6\.0 is outside the fitted range \[0\.0, 5\.0\]"):
        law.predict(predictor=6)
    assert float(law.predict(predictor=6, extrapolate=True)) == pytest.approx(36)
    with pytest.raises(ValueError, match="degree: 3 is not 1 or 2"):
        fit_polynomial(x, predictor=x, degree=3)
    with pytest.raises(ValueError, match="predictor: takes 2 distinct values; need at least 3"):
        fit_polynomial(x, predictor=x % 2)
    with pytest.raises(ValueError, match="points: 3 for 3 parameters; need at least 4"):
        fit_polynomial(x[:3], predictor=x[:3])
