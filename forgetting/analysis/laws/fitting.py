"""What the laws share: estimates with intervals, nonlinear least squares from many starts, fitted ranges.

A law's positive parameters are fitted as their logarithms. The covariance is s² (JᵀWJ)⁻¹ with the Jacobian J of the
law with respect to them (complex-step derivatives), W the weights and s² the weighted residual variance with n − k in
the denominator; an interval is Student's t with n − k degrees of freedom on that scale, so that a positive parameter's
interval is positive and not symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Range = tuple[float, float]

_DEPENDENT = 1e-9  # of the largest singular value of J with columns of length 1: below it, columns are dependent
_TRIED = 4  # starts that are followed to their minimum, of all that are looked at
_EVALUATIONS = 2000  # of the residuals, from each of those starts


@dataclass(frozen=True, slots=True)
class Estimate:
    """A fitted parameter.

    Attributes:
        value: The estimate.
        stderr: Standard error in the parameter's unit, to first order; 0 where the value was given, not fitted.
        low, high: Limits of its confidence interval; both the value where that was given.
    """

    value: float
    stderr: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a law: its name, and whether it is positive and so fitted as its logarithm."""

    name: str
    positive: bool = True

    def inner(self, value: float) -> float:
        """Return the fitted quantity of a value."""
        if not self.positive:
            return value
        with np.errstate(divide="ignore"):
            return float(np.log(value))

    def outer(self, inner: float) -> float:
        """Return the value of a fitted quantity; infinity where it is too large for a float."""
        with np.errstate(over="ignore"):
            return float(np.exp(inner)) if self.positive else float(inner)


@dataclass(frozen=True, slots=True)
class Solution:
    """Estimates by name, and the residual standard deviation (n − k in the denominator)."""

    estimates: dict[str, Estimate]
    residual: float


def variables(**values: ArrayLike) -> dict[str, Floats]:
    """Return the named measurements as float64 vectors of one length.

    Raises:
        ValueError: naming the one that is not one-dimensional, has another length than the first, or is not finite.
    """
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
    n = next(iter(arrays.values())).size
    for name, array in arrays.items():
        if array.ndim != 1 or array.size != n or not n:
            raise ValueError(f"{name}: has shape {array.shape}; need one axis, and as many values as the others ({n})")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: holds {array[~np.isfinite(array)][0]}; need finite numbers")
    return arrays


def check_inside(name: str, values: Floats, low: float, high: float, *, above: bool = False) -> None:
    """Raise ValueError unless all values are where the law is defined: in [low, high], or, ``above``, > low."""
    wrong = ~((values > low) if above else (values >= low)) | ~(values <= high)
    if wrong.any():
        valid = f"above {low:g}" if above else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name}: {float(values[wrong].flat[0]):g} is not {valid}")


def ranges_of(**values: Floats) -> dict[str, Range]:
    """Return the smallest and largest fitted value of each variable."""
    return {name: (float(value.min()), float(value.max())) for name, value in values.items()}


def check_ranges(ranges: Mapping[str, Range], values: Mapping[str, Floats], extrapolate: bool) -> None:
    """Raise ValueError if a value lies outside the range that the law was fitted on, unless ``extrapolate``."""
    for name, (low, high) in ranges.items():
        outside = (values[name] < low) | (values[name] > high)
        if outside.any() and not extrapolate:
            raise ValueError(
                f"{name}: {float(values[name][outside].flat[0])!r} is outside the fitted range [{low!r}, {high!r}]; "
                "give extrapolate=True to predict there"
            )


def check_level(level: float) -> None:
    """Raise ValueError unless a confidence level is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")


def check_fixed(fixed: Mapping[str, float], allowed: Sequence[str], zero: Sequence[str] = ()) -> None:
    """Raise ValueError if a given parameter is not allowed, or not above 0 (those in ``zero`` may be 0)."""
    for name, value in fixed.items():
        if name not in allowed:
            raise ValueError(f"fixed: {name!r} is none of {', '.join(allowed)}")
        if not (np.isfinite(value) and (value > 0 or (name in zero and value == 0))):
            raise ValueError(f"fixed: {name} = {value} is not {'0 or more' if name in zero else 'above 0'}")


def check_count(n: int, parameters: int) -> None:
    """Raise ValueError if there are not more points than parameters: nothing would be left for the residual."""
    if n <= parameters:
        raise ValueError(f"points: {n} for {parameters} parameters; need at least {parameters + 1}")


def weights_of(sigma: ArrayLike | None, n: int) -> Floats:
    """Return 1 / sigma, or ones.

    Raises:
        ValueError: if sigma has another shape or is not positive.
    """
    if sigma is None:
        return np.ones(n)
    array = np.asarray(sigma, dtype=np.float64)
    if array.shape != (n,) or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"sigma: has shape {array.shape}; need ({n},), finite and above 0")
    return 1 / array


def minimise(
    residuals: Callable[[Any], Any], starts: Sequence[Floats], bounds: tuple[Floats, Floats], names: Sequence[str]
) -> Floats:
    """Return where the sum of squared residuals is smallest, followed from the best of the starts.

    Args:
        residuals: Of a vector of fitted quantities; written so that it can be differentiated by complex steps.
        starts: Vectors.
        bounds: Lower and upper limits.
        names: What a quantity at its limit is called in the error.

    Raises:
        ValueError: naming the parameter whose quantity ends at its limit: the data do not determine it; or if the
            minimum is not found.
    """
    from scipy.optimize import least_squares

    def cost(start: Floats) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            value = float(np.sum(residuals(start) ** 2))
        return value if np.isfinite(value) else np.inf

    low, high = bounds
    inside = [np.clip(start, low + 1e-6, high - 1e-6) for start in starts]
    best = sorted((start for start in inside if np.isfinite(cost(start))), key=cost)[:_TRIED]
    tried = [
        least_squares(
            residuals,
            start,
            jac="cs",
            bounds=bounds,
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=_EVALUATIONS,
        )
        for start in best
    ]
    found = min(tried, key=lambda result: float(result.cost))
    for name, value, least, most in zip(names, found.x, low, high, strict=True):
        if min(value - least, most - value) < 1e-2:
            end = "lower" if value - least < most - value else "upper"
            raise ValueError(
                f"{name}: cannot be identified, it runs to its {end} limit; measure more widely, or hold it with "
                "fixed where the law allows"
            )
    if found.status == 0:
        raise ValueError(f"points: the fit does not settle on these {found.fun.size} within {_EVALUATIONS} evaluations")
    return np.asarray(found.x)


def solution(
    model: Callable[[Any], Any],
    parameters: Sequence[Parameter],
    inner: Floats,
    fixed: Mapping[str, float],
    observed: Floats,
    weights: Floats,
    level: float,
) -> Solution:
    """Return the estimates at a minimum with their standard errors and intervals.

    Args:
        model: The law's values (n,) of the fitted quantities of all parameters, in their order.
        parameters: Of the law.
        inner: Fitted quantities at the minimum.
        fixed: Parameters that were given.
        observed: (n,)
        weights: 1 / sigma, (n,).
        level: Confidence level.

    Raises:
        ValueError: naming the parameters of which the points determine only a combination.
    """
    from scipy import stats

    free = [i for i, parameter in enumerate(parameters) if parameter.name not in fixed]
    jacobian = np.empty((observed.size, len(free)))
    for column, i in enumerate(free):
        step = inner.astype(np.complex128)
        step[i] += 1e-30j
        jacobian[:, column] = weights * np.imag(model(step)) / 1e-30
    lengths = np.linalg.norm(jacobian, axis=0)
    flat = [parameters[free[i]].name for i in np.flatnonzero(lengths == 0)]
    if flat:
        raise ValueError(f"{', '.join(flat)}: cannot be identified, these points do not depend on it")
    _, singular, right = np.linalg.svd(jacobian / lengths, full_matrices=False)
    if singular[-1] < _DEPENDENT * singular[0]:
        mixed = [parameters[free[i]].name for i in np.flatnonzero(np.abs(right[-1]) > 0.1)]
        raise ValueError(f"{', '.join(mixed)}: cannot be identified, these points determine only a combination of them")
    degrees = observed.size - len(free)
    residual = float(np.sqrt(np.sum((weights * (observed - model(inner))) ** 2) / degrees))
    stderr = residual * np.sqrt(np.sum((right / singular[:, None]) ** 2, axis=0)) / lengths
    t = float(stats.t.ppf((1 + level) / 2, degrees))
    estimates = {}
    for i, parameter in enumerate(parameters):
        value = parameter.outer(inner[i])
        if parameter.name in fixed:
            estimates[parameter.name] = Estimate(value, 0.0, value, value)
            continue
        error = float(stderr[free.index(i)])
        low, high = parameter.outer(inner[i] - t * error), parameter.outer(inner[i] + t * error)
        estimates[parameter.name] = Estimate(value, error * (value if parameter.positive else 1.0), low, high)
    return Solution(estimates, residual)
