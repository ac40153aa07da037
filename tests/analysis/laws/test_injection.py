"""Planted parameters are found, intervals cover them, and what cannot be known is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from forgetting.analysis.laws import InjectionLaw, fit_injection
from forgetting.analysis.laws.fitting import Estimate

NAMES = ("A", "beta", "alpha", "B")
PLANTED = {"A": 50.0, "beta": 0.35, "alpha": 0.45, "B": 300.0}


def _settings(
    D: tuple[float, ...] = (1e6, 3e6, 1e7),
    N: tuple[float, ...] = (1e7, 1e8, 5e8),
    p: tuple[float, ...] = (0.0, 0.01, 0.05, 0.2),
) -> dict[str, np.ndarray]:
    grid = np.array(list(itertools.product(D, N, p))).T
    return dict(zip(("D", "N", "p"), grid, strict=True))


def _data(at: dict[str, np.ndarray], A: float, beta: float, alpha: float, B: float) -> dict[str, Any]:
    base = 5.0 - 0.1 * np.log(at["N"])  # every model size has its own
    return {"loss": base + A * at["D"] ** beta / ((1 + B * at["p"]) * at["N"]) ** alpha, "base": base, **at}


@pytest.mark.parametrize(
    "planted",
    [
        PLANTED,
        {"A": 0.02, "beta": 0.9, "alpha": 0.15, "B": 2.0},
        {"A": 3000.0, "beta": 0.05, "alpha": 1.1, "B": 20000.0},
    ],
)
def test_planted_parameters_are_found(planted: dict[str, float]) -> None:
    data = _data(_settings(), **planted)
    law = fit_injection(**data)
    for name, value in planted.items():
        assert getattr(law, name).value == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(
        law.predict(base=data["base"], D=data["D"], N=data["N"], p=data["p"]), data["loss"], rtol=1e-9
    )
    assert law.points == 36 and law.residual < 1e-9


def test_prediction_is_the_formula() -> None:
    fitted = {
        name: Estimate(value, 0.0, value, value) for name, value in zip(NAMES, (2.0, 0.5, 0.5, 100.0), strict=True)
    }
    law = InjectionLaw(**fitted, ranges={"D": (1, 100), "N": (1, 4), "p": (0, 1)}, residual=0.0, points=9, level=0.95)
    # 2 √100 / √((1 + 100 · 0.03) · 4) = 20 / 4
    assert float(law.predict(base=3.0, D=100, N=4, p=0.03)) == pytest.approx(8.0, rel=1e-15)
    assert law.predict(base=[3.0, 4.0], D=100, N=4, p=0.03) == pytest.approx([8.0, 9.0])


def test_errors_are_those_of_curve_fit() -> None:
    generator = np.random.default_rng(3)
    data = _data(_settings(), **PLANTED)
    data["loss"] = data["loss"] + generator.normal(scale=0.02, size=36)

    def rise(_: object, A: float, beta: float, alpha: float, B: float) -> np.ndarray:
        return A * data["D"] ** beta / ((1 + B * data["p"]) * data["N"]) ** alpha

    planted = list(PLANTED.values())
    observed = data["loss"] - data["base"]
    found, covariance = optimize.curve_fit(rise, data["D"], observed, p0=planted, x_scale=planted, method="trf")
    law = fit_injection(**data)
    for name, value, variance in zip(NAMES, found, np.diag(covariance), strict=True):
        assert getattr(law, name).value == pytest.approx(value, rel=1e-4)
        assert getattr(law, name).stderr == pytest.approx(variance**0.5, rel=1e-3)


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    clean, runs = _data(_settings(), **PLANTED), 150
    covered = dict.fromkeys(NAMES, 0)
    for _ in range(runs):
        noisy = clean | {"loss": clean["loss"] + generator.normal(scale=0.02, size=36)}
        law = fit_injection(**noisy, level=0.9)
        for name in NAMES:
            estimate = getattr(law, name)
            covered[name] += estimate.low <= PLANTED[name] <= estimate.high
            assert estimate.low < estimate.value < estimate.high
    few, many = stats.binom.interval(0.999, runs, 0.9)
    for name in NAMES:
        assert few <= covered[name] <= many, (name, covered)


def test_other_units_of_data_change_only_the_factor() -> None:
    generator = np.random.default_rng(1)
    data = _data(_settings(), **PLANTED)
    data["loss"] = data["loss"] + generator.normal(scale=0.02, size=36)
    tokens, thousands = fit_injection(**data), fit_injection(**data | {"D": data["D"] / 1000})
    for name in ("beta", "alpha", "B"):
        assert getattr(thousands, name).value == pytest.approx(getattr(tokens, name).value, rel=1e-7)
        assert getattr(thousands, name).stderr == pytest.approx(getattr(tokens, name).stderr, rel=1e-5)
    assert thousands.A.value == pytest.approx(tokens.A.value * 1000**tokens.beta.value, rel=1e-6)


def test_a_point_of_half_the_variance_counts_as_two() -> None:
    generator = np.random.default_rng(2)
    data = _data(_settings(), **PLANTED)
    data["loss"] = data["loss"] + generator.normal(scale=0.02, size=36)
    sigma = np.ones(36)
    sigma[:9] = 0.5**0.5
    twice = {name: np.concatenate([values, values[:9]]) for name, values in data.items()}
    weighted, repeated = fit_injection(**data, sigma=sigma), fit_injection(**twice)
    plain = fit_injection(**data)
    for name in NAMES:
        assert getattr(weighted, name).value == pytest.approx(getattr(repeated, name).value, rel=1e-7)
        assert getattr(weighted, name).value != pytest.approx(getattr(plain, name).value, rel=1e-5)


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        ({"D": 2e7}, r"D: 20000000\.0 is outside the fitted range \[1000000\.0, 10000000\.0\]"),
        ({"N": 9e6}, r"N: 9000000\.0 is outside"),
        ({"p": 0.3}, r"p: 0\.3 is outside the fitted range \[0\.0, 0\.2\]; give extrapolate=True"),
    ],
)
def test_extrapolation_is_refused_unless_asked_for(outside: dict[str, float], message: str) -> None:
    law = fit_injection(**_data(_settings(), **PLANTED))
    at = {"D": 2e6, "N": 2e7, "p": 0.1} | outside
    with pytest.raises(ValueError, match=message):
        law.predict(base=3.0, **at)
    expected = 3.0 + 50 * at["D"] ** 0.35 / ((1 + 300 * at["p"]) * at["N"]) ** 0.45
    assert float(law.predict(base=3.0, **at, extrapolate=True)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "fixed", "message"),
    [
        ({"p": (0.01,)}, {}, r"B: cannot be identified, p takes one value \(0\.01\)"),
        ({"D": (1e6,)}, {}, r"beta: cannot be identified, D takes one value \(1e\+06\)"),
        ({"N": (1e8,), "p": (0.0, 0.1)}, {}, r"alpha: cannot be identified, N takes one value \(1e\+08\) and p 2"),
        ({"N": (1e8,), "p": (0.0, 0.1)}, {"B": 0}, r"alpha: cannot be identified, N takes one value"),
    ],
)
def test_what_the_settings_cannot_tell_is_named(
    settings: dict[str, tuple[float, ...]], fixed: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_injection(**_data(_settings(**settings), **PLANTED), fixed=fixed)


@pytest.mark.parametrize(
    ("settings", "fixed"),
    [
        ({"p": (0.0,)}, {"B": 0.0}),
        ({"p": (0.01,)}, {"B": 300.0}),
        ({"D": (1e6,)}, {"beta": 0.35}),
        ({"N": (1e8,), "p": (0.0, 0.1)}, {"B": 300.0}),
        ({"N": (1e8,), "p": (0.0, 0.1)}, {"alpha": 0.45}),
        ({"N": (1e8,), "p": (0.0, 0.01, 0.1)}, {}),  # three shares of one model tell both
    ],
)
def test_a_held_parameter_lets_the_others_be_found(
    settings: dict[str, tuple[float, ...]], fixed: dict[str, float]
) -> None:
    law = fit_injection(**_data(_settings(**settings), **PLANTED), fixed=fixed)
    for name, value in (PLANTED | fixed).items():
        estimate = getattr(law, name)
        assert estimate.value == pytest.approx(value, rel=1e-6)
        if name in fixed:
            assert (estimate.stderr, estimate.low, estimate.high) == (0.0, estimate.value, estimate.value)


def test_data_in_proportion_to_the_model_cannot_tell_their_exponents() -> None:
    at = {"N": np.repeat([1e7, 3e7, 1e8, 3e8], 3), "p": np.tile([0.0, 0.0, 0.0], 4)}
    data = _data({**at, "D": 20 * at["N"]}, **PLANTED)
    with pytest.raises(ValueError, match=r"A, beta, alpha: cannot be identified, .* only a combination"):
        fit_injection(**data, fixed={"B": 0})


def test_shares_that_all_protect_beyond_measure_cannot_tell_how_much() -> None:
    # without p = 0 and with B p ≫ 1, B and A are one factor
    data = _data(_settings(p=(0.01, 0.05, 0.2)), **PLANTED | {"A": 5e4, "B": 1e12})
    with pytest.raises(ValueError, match=r"B: cannot be identified, it runs to its upper limit"):
        fit_injection(**data)


def _without(data: dict[str, Any], name: str, place: int, value: float) -> dict[str, Any]:
    changed = data[name].copy()
    changed[place] = value
    return data | {name: changed}


def test_bad_arguments_are_named() -> None:
    data = _data(_settings(), **PLANTED)
    with pytest.raises(
        ValueError, match=r"p: has shape \(35,\); need one axis, and as many values as the others \(36\)"
    ):
        fit_injection(**data | {"p": data["p"][:-1]})
    with pytest.raises(ValueError, match="loss: holds nan"):
        fit_injection(**_without(data, "loss", 3, float("nan")))
    with pytest.raises(ValueError, match="D: 0 is not above 0"):
        fit_injection(**_without(data, "D", 3, 0.0))
    with pytest.raises(ValueError, match=r"p: 5 is not in \[0, 1\]"):
        fit_injection(**_without(data, "p", 3, 5.0))
    with pytest.raises(ValueError, match="loss: is not above base"):
        fit_injection(**data | {"loss": data["base"] - 0.1})
    with pytest.raises(ValueError, match="fixed: 'A' is none of beta, alpha, B"):
        fit_injection(**data, fixed={"A": 1.0})
    with pytest.raises(ValueError, match="fixed: alpha = 0 is not above 0"):
        fit_injection(**data, fixed={"alpha": 0})
    with pytest.raises(ValueError, match="fixed: B = -1 is not 0 or more"):
        fit_injection(**data, fixed={"B": -1})
    with pytest.raises(ValueError, match="level: 95 is not between 0 and 1"):
        fit_injection(**data, level=95)
    with pytest.raises(ValueError, match=r"sigma: has shape \(1,\); need \(36,\)"):
        fit_injection(**data, sigma=[1.0])
    with pytest.raises(ValueError, match="points: 4 for 4 parameters; need at least 5"):
        fit_injection(**{name: values[:4] for name, values in data.items()})
    with pytest.raises(ValueError, match=r"p: 1\.5 is not in \[0, 1\]"):
        fit_injection(**data).predict(base=3.0, D=2e6, N=2e7, p=1.5, extrapolate=True)
