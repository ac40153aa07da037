"""Forgetting against the number of tuned parameters and of update steps (Kalajdzievski 2024).

Scaling Laws for Forgetting When Fine-Tuning Large Language Models, arXiv 2401.05605: a shifted power law,

    L_f = s − ((a / P)^α + (b / N)^β)^ρ

L_f is forgetting (there as in :mod:`forgetting.analysis.laws.finetuning_loss`; here any measure of it), P the number of
parameters tuned (there of LoRA at several ranks), N of update steps.

How sure this form is: it was not read from the paper's equation, but from the names and values of the coefficients in
the paper's table, as somebody else's notes give them: a_f, b_f, α_f, β_f, ρ, and c_ft, s_ft, c_{f,ft}, s_{f,ft}. In
L_f = s_{f,ft} − c_{f,ft} (c_ft ((a_f/P)^{α_f} + (b_f/N)^{β_f})^ρ + s_ft) those values give the same forgetting as the
table's own fit of the fine-tuning loss does through the linear law (a test checks that). It is written here with the
fewest parameters: a factor k before the power cannot be told from a and b, since k, a, b give the same function as
1, a k^(1/ρα), b k^(1/ρβ).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from forgetting.analysis.laws.fitting import (
    Estimate,
    Floats,
    Parameter,
    Range,
    check_count,
    check_fixed,
    check_inside,
    check_level,
    check_ranges,
    minimise,
    ranges_of,
    solution,
    variables,
    weights_of,
)

PARAMETERS = (Parameter("s", positive=False), *(Parameter(name) for name in ("a", "b", "alpha", "beta", "rho")))
_SHAPE = ("alpha", "beta", "rho")


@dataclass(frozen=True, slots=True)
class TunedParametersLaw:
    """A fitted law L_f = s − ((a / P)^α + (b / N)^β)^ρ, see the module.

    Attributes:
        s: Forgetting that many parameters and steps tend to, in forgetting's unit; of either sign.
        a, b: In units of parameters and of steps.
        alpha, beta, rho: Without unit.
        ranges: Smallest and largest fitted ``P`` and ``N``.
        residual: Standard deviation of the residuals (of residual / sigma where sigma was given).
        points: How many were fitted.
        level: Of the intervals.
    """

    s: Estimate
    a: Estimate
    b: Estimate
    alpha: Estimate
    beta: Estimate
    rho: Estimate
    ranges: Mapping[str, Range]
    residual: float
    points: int
    level: float

    def predict(self, *, P: ArrayLike, N: ArrayLike, extrapolate: bool = False) -> Floats:
        """Return the predicted forgetting, of the arguments' broadcast shape.

        Raises:
            ValueError: naming a variable, if it is not above 0, or outside its fitted range, unless ``extrapolate``.
        """
        given = np.broadcast_arrays(np.asarray(P, dtype=np.float64), np.asarray(N, dtype=np.float64))
        at = dict(zip(("P", "N"), given, strict=True))
        _check(at)
        check_ranges(self.ranges, at, extrapolate)
        return np.asarray(_forgetting(np.array([x.inner(getattr(self, x.name).value) for x in PARAMETERS]), at))


def _forgetting(inner: Any, at: Mapping[str, Floats]) -> Any:
    """The law of s, log a, log b, log α, log β, log ρ; of complex quantities too."""
    s, a, b = inner[0], inner[1], inner[2]
    alpha, beta, rho = np.exp(inner[3]), np.exp(inner[4]), np.exp(inner[5])
    return s - (np.exp(alpha * (a - np.log(at["P"]))) + np.exp(beta * (b - np.log(at["N"])))) ** rho


def _check(at: Mapping[str, Floats]) -> None:
    for name, values in at.items():
        check_inside(name, values, 0.0, np.inf, above=True)


def fit_tuned_parameters(
    forgetting: ArrayLike,
    *,
    P: ArrayLike,
    N: ArrayLike,
    sigma: ArrayLike | None = None,
    fixed: Mapping[str, float] | None = None,
    level: float = 0.95,
) -> TunedParametersLaw:
    """Fit L_f = s − ((a / P)^α + (b / N)^β)^ρ by least squares; intervals as in ``analysis.laws.fitting``.

    ρ is the hardest to tell: with ρ → ∞ and αρ, βρ constant the sum becomes the product of two power laws. Where the
    points cannot tell, the fit is refused, and ``fixed={"rho": 1}`` (a sum of two) is one way out.

    Args:
        forgetting: L_f of n points, shape (n,).
        P: Parameters tuned, shape (n,), above 0.
        N: Update steps, shape (n,), above 0.
        sigma: Standard deviation of each L_f up to a common factor, shape (n,); all alike where not given.
        fixed: Values of ``alpha``, ``beta`` or ``rho`` that are not to be fitted.
        level: Of the intervals.

    Raises:
        ValueError: if a variable has another shape or is not defined there; if there are not more points than
            parameters; or, naming the parameter, if the points do not identify it.
    """
    held = dict(fixed or {})
    data = variables(forgetting=forgetting, P=P, N=N)
    observed, at = data["forgetting"], {"P": data["P"], "N": data["N"]}
    _check(at)
    check_level(level)
    check_fixed(held, _SHAPE)
    for names, variable in ((("a", "alpha"), "P"), (("b", "beta"), "N")):
        if np.ptp(at[variable]) == 0:
            raise ValueError(
                f"{' and '.join(names)}: cannot be identified, {variable} takes one value ({at[variable][0]:g})"
            )
    check_count(observed.size, len(PARAMETERS) - len(held))
    weights = weights_of(sigma, observed.size)
    logs = {name: np.log(values) for name, values in at.items()}
    centre = {name: float(values.mean()) for name, values in logs.items()}
    free = [name for name in _SHAPE if name not in held]

    def curve(shape: Any, odds: Any) -> Any:
        """((a/P)^α + (b/N)^β)^ρ with 1 at the points' centre, where the first term is the share of these odds."""
        found = dict(zip(free, np.exp(shape), strict=True)) | held
        share = 1 / (1 + np.exp(-odds))
        first = share * np.exp(-found["alpha"] * (logs["P"] - centre["P"]))
        second = (1 - share) * np.exp(-found["beta"] * (logs["N"] - centre["N"]))
        return (first + second) ** found["rho"]

    def residuals(quantities: Any) -> Any:
        s, size, odds, *shape = quantities
        return weights * (s - np.exp(size) * curve(np.array(shape), odds) - observed)

    candidates = {"alpha": [0.03, 0.1, 0.3, 1.0], "beta": [0.03, 0.1, 0.3, 1.0], "rho": [0.5, 1.0, 3.0, 10.0]}
    starts = []
    for *shape, odds in itertools.product(*(np.log(candidates[name]) for name in free), (-1.5, 0.0, 1.5)):
        columns = weights[:, None] * np.stack([np.ones_like(observed), -curve(np.array(shape), odds)], axis=1)
        s, size = np.linalg.lstsq(columns, weights * observed)[0]
        if size > 0:
            starts.append(np.array([s, np.log(size), odds, *shape]))
    if not starts:
        raise ValueError("forgetting: does not rise with P and N on the whole; the law is of a rise")
    low = np.array([-np.inf, -np.inf, -30.0, *np.log([1e-4] * len(free))])
    high = np.array([np.inf, np.inf, 30.0, *np.log([100.0 if name == "rho" else 20.0 for name in free])])
    s, size, odds, *shape = minimise(residuals, starts, (low, high), ["s", "s", "a and b", *free])
    found = dict(zip(free, np.exp(shape), strict=True)) | held
    # share · e^{size/ρ} = (a / P)^α at the centre of P, and the rest likewise for b
    terms = size / found["rho"] - np.logaddexp(0.0, np.array([-odds, odds]))
    inner = np.array(
        [
            s,
            centre["P"] + terms[0] / found["alpha"],
            centre["N"] + terms[1] / found["beta"],
            *(np.log(found[name]) for name in _SHAPE),
        ]
    )
    fit = solution(lambda x: _forgetting(x, at), PARAMETERS, inner, held, observed, weights, level)
    return TunedParametersLaw(
        **fit.estimates, ranges=ranges_of(**at), residual=fit.residual, points=observed.size, level=level
    )
