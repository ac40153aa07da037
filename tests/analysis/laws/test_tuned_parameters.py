"""Planted parameters are found, intervals cover them, and the form is the one of the published coefficients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.laws import fit_tuned_parameters, fitting

NAMES = ("s", "a", "b", "alpha", "beta", "rho")
PLANTED = {"s": 2.0, "a": 1e5, "b": 40.0, "alpha": 0.3, "beta": 0.4, "rho": 1.5}
PN = np.array(list(itertools.product([1e5, 3e5, 1e6, 3e6, 1e7], [30, 60, 120, 250, 500])), dtype=float).T

# a_f, a_ft, b_f, b_ft, c_ft, c_{f,ft}, s_ft, s_{f,ft}, alpha_f, alpha_ft, beta_f, beta_ft, rho of the two data sets
OPENORCA = (3.88e5, 7e3, 23.6418, 72.9186, 0.0020, 1.7334, 0.6126, 2.0481, 0.0351, 0.0424, 0.1468, 0.1219, 7.6885)
NEWS = (1.1e4, 2.2e4, 97.8466, 54.8678, 0.0028, 1.0615, 1.9253, 3.1285, 0.0458, 0.0383, 0.1044, 0.1161, 7.5996)


def _law(s: float, a: float, b: float, alpha: float, beta: float, rho: float) -> np.ndarray:
    P, N = PN
    return s - ((a / P) ** alpha + (b / N) ** beta) ** rho


@pytest.mark.parametrize(
    "planted",
    [
        PLANTED,
        {"s": -0.1, "a": 1e5, "b": 50.0, "alpha": 0.5, "beta": 0.5, "rho": 1.0},
        {"s": 1.0, "a": 4e-5, "b": 0.1, "alpha": 0.035, "beta": 0.15, "rho": 7.7},  # as flat as the published fits
    ],
)
def test_planted_parameters_are_found(planted: dict[str, float]) -> None:
    law = fit_tuned_parameters(_law(**planted), P=PN[0], N=PN[1])
    for name, value in planted.items():
        assert getattr(law, name).value == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(law.predict(P=PN[0], N=PN[1]), _law(**planted), rtol=1e-9, atol=1e-9)


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    clean, runs = _law(**PLANTED), 60
    covered = dict.fromkeys(NAMES, 0)
    for _ in range(runs):
        law = fit_tuned_parameters(clean + generator.normal(scale=0.005, size=25), P=PN[0], N=PN[1], level=0.9)
        for name in NAMES:
            covered[name] += getattr(law, name).low <= PLANTED[name] <= getattr(law, name).high
    few, many = stats.binom.interval(0.999, runs, 0.9)
    for name in NAMES:
        assert few <= covered[name] <= many, (name, covered)


@pytest.mark.parametrize("coefficients", [OPENORCA, NEWS])
def test_the_published_coefficients_agree_in_this_form(coefficients: tuple[float, ...]) -> None:
    """The table's fit of forgetting, in our form, is its fit of the fine-tuning loss put through its line."""
    a_f, a_ft, b_f, b_ft, c_ft, c, s_ft, s, alpha_f, alpha_ft, beta_f, beta_ft, rho = coefficients
    P, N = np.meshgrid([2e7, 8e7, 3e8], [60, 130, 260])  # LoRA of a 7B model, steps after its warm-up
    finetuning_loss = c_ft * ((a_ft / P) ** alpha_ft + (b_ft / N) ** beta_ft) ** rho + s_ft
    factor = c * c_ft
    a, b = a_f * factor ** (1 / (rho * alpha_f)), b_f * factor ** (1 / (rho * beta_f))
    forgetting = s - c * s_ft - ((a / P) ** alpha_f + (b / N) ** beta_f) ** rho
    assert np.ptp(forgetting) > 0.07
    np.testing.assert_allclose(forgetting, s - c * finetuning_loss, atol=0.02)


def test_a_held_exponent_is_kept() -> None:
    planted = PLANTED | {"rho": 1.0}
    law = fit_tuned_parameters(_law(**planted), P=PN[0], N=PN[1], fixed={"rho": 1})
    assert (law.rho.value, law.rho.stderr) == (1.0, 0.0)
    for name in ("s", "a", "b", "alpha", "beta"):
        assert getattr(law, name).value == pytest.approx(planted[name], rel=1e-6)


def test_extrapolation_is_refused_unless_asked_for() -> None:
    law = fit_tuned_parameters(_law(**PLANTED), P=PN[0], N=PN[1])
    with pytest.raises(ValueError, match=r"N: 1000\.0 is outside the fitted range \[30\.0, 500\.0\]"):
        law.predict(P=1e6, N=1000)
    with pytest.raises(ValueError, match=r"P: 10000\.0 is outside"):
        law.predict(P=[1e6, 1e4], N=100)
    with pytest.raises(ValueError, match="P: 0 is not above 0"):
        law.predict(P=0, N=100, extrapolate=True)
    got = law.predict(P=1e6, N=1000, extrapolate=True)
    assert float(got) == pytest.approx(2 - (0.1**0.3 + 0.04**0.4) ** 1.5, rel=1e-8)


def test_what_cannot_be_told_is_named() -> None:
    values = _law(**PLANTED)
    one = PN[0] == 1e6
    with pytest.raises(ValueError, match=r"a and alpha: cannot be identified, P takes one value \(1e\+06\)"):
        fit_tuned_parameters(values[one], P=PN[0][one], N=PN[1][one])
    one = PN[1] == 60
    with pytest.raises(ValueError, match=r"b and beta: cannot be identified, N takes one value \(60\)"):
        fit_tuned_parameters(values[one], P=PN[0][one], N=PN[1][one])
    # a product of two power laws is the limit of many ρ
    product = 1 - (1e5 / PN[0]) ** 0.3 * (40 / PN[1]) ** 0.4
    with pytest.raises(ValueError, match=r"rho: cannot be identified|alpha: cannot be identified"):
        fit_tuned_parameters(product, P=PN[0], N=PN[1])
    with pytest.raises(ValueError, match="points: 6 for 6 parameters; need at least 7"):
        fit_tuned_parameters(values[3:9], P=PN[0][3:9], N=PN[1][3:9])
    with pytest.raises(ValueError, match="forgetting: does not rise with P and N"):
        fit_tuned_parameters(-values, P=PN[0], N=PN[1])


def test_a_fit_that_does_not_settle_is_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_EVALUATIONS", 3)
    with pytest.raises(ValueError, match="points: the fit does not settle on these 25 within 3 evaluations"):
        fit_tuned_parameters(_law(**PLANTED), P=PN[0], N=PN[1])
