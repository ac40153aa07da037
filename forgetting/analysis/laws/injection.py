"""Forgetting when some pretraining data is injected into the fine-tuning data (Bethune et al. 2025).

Scaling Laws for Forgetting during Finetuning with Pretraining Data Injection, arXiv 2502.06042:

    L = L0 + A D^β / ((1 + B p) N)^α

L is the loss on held-out pretraining text after fine-tuning, L0 that of the base model (nats per token, both), D the
size of the fine-tuning data, N the model's parameters, p the share of the training data that is pretraining data.
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

PARAMETERS = tuple(Parameter(name) for name in ("A", "beta", "alpha", "B"))
_SHAPE = ("beta", "alpha", "B")


@dataclass(frozen=True, slots=True)
class InjectionLaw:
    """A fitted law L = L0 + A D^β / ((1 + B p) N)^α, see the module.

    Attributes:
        A: In the loss's unit, for D and N in the units in which they were given.
        beta, alpha, B: Without unit; B says how much a share p of pretraining data protects, as if the model were
            1 + B p times as large.
        ranges: Smallest and largest fitted ``D``, ``N`` and ``p``.
        residual: Standard deviation of the residuals (of residual / sigma where sigma was given).
        points: How many were fitted.
        level: Of the intervals.
    """

    A: Estimate
    beta: Estimate
    alpha: Estimate
    B: Estimate
    ranges: Mapping[str, Range]
    residual: float
    points: int
    level: float

    def predict(
        self, *, base: ArrayLike, D: ArrayLike, N: ArrayLike, p: ArrayLike, extrapolate: bool = False
    ) -> Floats:
        """Return the predicted loss after fine-tuning, in ``base``'s unit, of the arguments' broadcast shape.

        Args:
            base: L0, the base model's loss on the same text. It is added; the law does not depend on it otherwise,
                and has no range in it.
            D: Size of the fine-tuning data, in the unit that was fitted.
            N: Parameters of the model.
            p: Share of pretraining data in the training data.
            extrapolate: Predict outside the fitted ranges too.

        Raises:
            ValueError: naming a variable, if it is not defined there, or outside its fitted range.
        """
        known, *given = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (base, D, N, p)))
        named = dict(zip(("D", "N", "p"), given, strict=True))
        _check(named)
        check_ranges(self.ranges, named, extrapolate)
        inner = np.array([x.inner(getattr(self, x.name).value) for x in PARAMETERS])
        return np.asarray(known + _rise(inner, named))


def _rise(inner: Any, at: Mapping[str, Floats]) -> Any:
    """A D^β / ((1 + B p) N)^α of log A, log β, log α, log B; of complex quantities too."""
    return np.exp(inner[0] + _log_shape(inner[1:], at))


def _log_shape(shape: Any, at: Mapping[str, Floats]) -> Any:
    beta, alpha, B = np.exp(shape[0]), np.exp(shape[1]), np.exp(shape[2])
    return beta * np.log(at["D"]) - alpha * (np.log(at["N"]) + np.log1p(B * at["p"]))


def _check(at: Mapping[str, Floats]) -> None:
    check_inside("D", at["D"], 0.0, np.inf, above=True)
    check_inside("N", at["N"], 0.0, np.inf, above=True)
    check_inside("p", at["p"], 0.0, 1.0)


def _check_identifiable(at: Mapping[str, Floats], fixed: Mapping[str, float]) -> None:
    """Raise ValueError, naming the parameter, where the settings alone show that it cannot be found."""
    distinct = {name: np.unique(values) for name, values in at.items()}
    if "B" not in fixed and distinct["p"].size == 1:
        raise ValueError(
            f"B: cannot be identified, p takes one value ({distinct['p'][0]:g}); vary p, or hold B with fixed"
        )
    if "beta" not in fixed and distinct["D"].size == 1:
        raise ValueError(
            f"beta: cannot be identified, D takes one value ({distinct['D'][0]:g}); vary D, or hold beta with fixed"
        )
    # With one N, alpha shows in p alone: two shares give one ratio, for alpha and B together.
    needed = 2 if "B" in fixed and fixed["B"] > 0 else 3
    if "alpha" not in fixed and distinct["N"].size == 1 and distinct["p"].size < needed:
        raise ValueError(
            f"alpha: cannot be identified, N takes one value ({distinct['N'][0]:g}) and p {distinct['p'].size}; "
            f"vary N, or p over {needed} values, or hold alpha with fixed"
        )


def fit_injection(
    loss: ArrayLike,
    *,
    base: ArrayLike,
    D: ArrayLike,
    N: ArrayLike,
    p: ArrayLike,
    sigma: ArrayLike | None = None,
    fixed: Mapping[str, float] | None = None,
    level: float = 0.95,
) -> InjectionLaw:
    """Fit L = L0 + A D^β / ((1 + B p) N)^α by least squares; intervals as in :mod:`forgetting.analysis.laws.fitting`.

    Args:
        loss: L, after fine-tuning, of n points, shape (n,), nats per token.
        base: L0, the loss of each point's base model on the same text, shape (n,).
        D: Size of the fine-tuning data, in tokens or in examples (the same for all), shape (n,), above 0.
        N: Parameters of the model, shape (n,), above 0.
        p: Share of pretraining data in the training data, shape (n,), in [0, 1].
        sigma: Standard deviation of each loss up to a common factor, shape (n,); all alike where not given, so that
            the largest rises weigh most. ``sigma=loss − base`` fits relative errors of the rise.
        fixed: Values of ``alpha``, ``beta`` or ``B`` that are not to be fitted.
        level: Of the intervals.

    Raises:
        ValueError: if a variable has another shape or is not defined there; if there are not more points than
            parameters; or, naming the parameter, if the points do not identify it.
    """
    held = dict(fixed or {})
    data = variables(loss=loss, base=base, D=D, N=N, p=p)
    at = {name: data[name] for name in ("D", "N", "p")}
    _check(at)
    check_level(level)
    check_fixed(held, _SHAPE, zero=("B",))
    check_count(data["loss"].size, len(PARAMETERS) - len(held))
    _check_identifiable(at, held)
    weights = weights_of(sigma, data["loss"].size)
    rise = data["loss"] - data["base"]
    free = [name for name in _SHAPE if name not in held]

    def shape_of(quantities: Any) -> list[Any]:
        found = dict(zip(free, quantities, strict=True))
        return [found[x.name] if x.name in found else x.inner(held[x.name]) for x in PARAMETERS[1:]]

    def residuals(quantities: Any) -> Any:
        # The first is the log of the rise at the points' centre: A itself lies far from them, and moves with β and α.
        logs = _log_shape(shape_of(quantities[1:]), at)
        return weights * (np.exp(quantities[0] + logs - logs.mean()) - rise)

    used = at["p"][at["p"] > 0]
    scale = float(np.median(used)) if used.size else 1.0
    candidates = {
        "beta": np.log([0.05, 0.2, 0.5, 1.0]),
        "alpha": np.log([0.05, 0.2, 0.5, 1.0]),
        "B": np.log([0.03, 0.3, 3.0, 30.0, 300.0]) - np.log(scale),
    }
    limits = {"beta": (1e-4, 20.0), "alpha": (1e-4, 20.0), "B": (1e-4 / scale, 1e7 / scale)}
    starts = []
    for shape in itertools.product(*(candidates[name] for name in free)):
        logs = _log_shape(shape_of(shape), at)
        unit = weights * np.exp(logs - logs.mean())
        size = float(unit @ (weights * rise) / (unit @ unit))
        if size > 0:
            starts.append(np.array([np.log(size), *shape]))
    if not starts:
        raise ValueError("loss: is not above base on the whole; the law is of a rise")
    bounds = np.log([limits[name] for name in free]).reshape(-1, 2)
    low, high = np.array([-np.inf, *bounds[:, 0]]), np.array([np.inf, *bounds[:, 1]])
    quantities = minimise(residuals, starts, (low, high), ["A", *free])
    found_shape = np.array(shape_of(quantities[1:]))
    inner = np.array([quantities[0] - _log_shape(found_shape, at).mean(), *found_shape])
    found = solution(lambda x: data["base"] + _rise(x, at), PARAMETERS, inner, held, data["loss"], weights, level)
    return InjectionLaw(
        **found.estimates, ranges=ranges_of(**at), residual=found.residual, points=rise.size, level=level
    )
