"""Forgetting as a polynomial of a divergence or distance from the base model (after Shenfeld et al. 2025).

RL's Razor: Why Online Reinforcement Learning Forgets Less, arXiv 2509.04259, finds that forgetting is a function of the
forward KL divergence KL(base ‖ tuned) on the new task's inputs, whatever the method of tuning, and fits a polynomial of
degree 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from forgetting.analysis.laws.fitting import (
    Estimate,
    Floats,
    Parameter,
    Range,
    check_count,
    check_level,
    check_ranges,
    ranges_of,
    solution,
    variables,
)

DEGREES = (1, 2)


@dataclass(frozen=True, slots=True)
class PolynomialLaw:
    """Forgetting as a polynomial of one predictor, Σ_k coefficient_k x^k.

    Attributes:
        coefficients: Of x⁰, x¹ and, for degree 2, x².
        r2: Share of forgetting's variance that it explains, on the fitted points.
        ranges: Smallest and largest fitted ``predictor``.
        residual: Standard deviation of the residuals (n − degree − 1 in the denominator).
        points: How many were fitted.
        level: Of the intervals.
    """

    coefficients: tuple[Estimate, ...]
    r2: float
    ranges: Mapping[str, Range]
    residual: float
    points: int
    level: float

    def predict(self, *, predictor: ArrayLike, extrapolate: bool = False) -> Floats:
        """Return the predicted forgetting, of the argument's shape.

        Raises:
            ValueError: outside the fitted range, unless ``extrapolate``.
        """
        at = {"predictor": np.asarray(predictor, dtype=np.float64)}
        check_ranges(self.ranges, at, extrapolate)
        return np.asarray(np.polynomial.polynomial.polyval(at["predictor"], [c.value for c in self.coefficients]))


def fit_polynomial(
    forgetting: ArrayLike, *, predictor: ArrayLike, degree: int = 2, level: float = 0.95
) -> PolynomialLaw:
    """Fit a polynomial by least squares; intervals are Student's t with n − degree − 1 degrees of freedom.

    Args:
        forgetting: Of n points, shape (n,).
        predictor: Such as the forward KL on the new task's inputs, shape (n,).
        degree: 1 or 2.
        level: Of the intervals.

    Raises:
        ValueError: if a shape or the degree is another, or the points do not determine the polynomial.
    """
    data = variables(forgetting=forgetting, predictor=predictor)
    y, x = data["forgetting"], data["predictor"]
    check_level(level)
    check_degree(degree)
    check_count(y.size, degree + 1)
    check_distinct("predictor", x, degree + 1)
    powers = np.vander(x, degree + 1, increasing=True)
    lengths = np.linalg.norm(powers, axis=0)
    coefficients = np.linalg.lstsq(powers / lengths, y)[0] / lengths
    parameters = [Parameter(f"x^{k}", positive=False) for k in range(degree + 1)]
    found = solution(lambda c: powers @ c, parameters, coefficients, {}, y, np.ones(y.size), level)
    spread = float(np.sum((y - y.mean()) ** 2))
    return PolynomialLaw(
        coefficients=tuple(found.estimates.values()),
        r2=1 - found.residual**2 * (y.size - degree - 1) / spread if spread else float("nan"),
        ranges=ranges_of(predictor=x),
        residual=found.residual,
        points=y.size,
        level=level,
    )


def check_degree(degree: int) -> None:
    """Raise ValueError unless a polynomial's degree is 1 or 2."""
    if degree not in DEGREES:
        raise ValueError(f"degree: {degree} is not 1 or 2")


def check_distinct(name: str, values: Floats, needed: int) -> None:
    """Raise ValueError if there are fewer distinct values than needed."""
    found = np.unique(values).size
    if found < needed:
        raise ValueError(f"{name}: takes {found} distinct values; need at least {needed}")
