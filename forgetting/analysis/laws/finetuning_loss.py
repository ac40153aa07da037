"""Forgetting against fine-tuning loss: a line (Kalajdzievski 2024).

Scaling Laws for Forgetting When Fine-Tuning Large Language Models, arXiv 2401.05605, on LoRA of several ranks:

    L_f = s − c L_ft      (s_{f,ft} and c_{f,ft} of the paper)

L_ft is the fine-tuning loss. L_f is forgetting: there the cross-entropy of the tuned model's predictions with the base
model's distribution as the target, nats per token of held-out text; here any measure of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from forgetting.analysis.laws.fitting import (
    Estimate,
    Floats,
    Range,
    check_count,
    check_level,
    check_ranges,
    ranges_of,
    variables,
)


@dataclass(frozen=True, slots=True)
class FineTuningLossLaw:
    """A fitted law L_f = s − c L_ft, see the module.

    Attributes:
        s: Forgetting that belongs to a fine-tuning loss of 0, in forgetting's unit.
        c: Forgetting per unit of fine-tuning loss; negative if what learns more forgets less.
        r2: Share of forgetting's variance that the line explains.
        ranges: Smallest and largest fitted ``finetuning_loss``.
        residual: Standard deviation of the residuals (n − 2 in the denominator).
        points: How many were fitted.
        level: Of the intervals.
    """

    s: Estimate
    c: Estimate
    r2: float
    ranges: Mapping[str, Range]
    residual: float
    points: int
    level: float

    def predict(self, *, finetuning_loss: ArrayLike, extrapolate: bool = False) -> Floats:
        """Return the predicted forgetting, of the argument's shape.

        Raises:
            ValueError: outside the fitted range, unless ``extrapolate``.
        """
        at = {"finetuning_loss": np.asarray(finetuning_loss, dtype=np.float64)}
        check_ranges(self.ranges, at, extrapolate)
        return np.asarray(self.s.value - self.c.value * at["finetuning_loss"])


def fit_finetuning_loss(forgetting: ArrayLike, *, finetuning_loss: ArrayLike, level: float = 0.95) -> FineTuningLossLaw:
    """Fit L_f = s − c L_ft by least squares (``scipy.stats.linregress``), with Student's t intervals.

    Args:
        forgetting: L_f of n points, shape (n,), n ≥ 3.
        finetuning_loss: L_ft, shape (n,).
        level: Of the intervals.

    Raises:
        ValueError: if a shape is another, there are fewer than three points, or L_ft takes one value.
    """
    from scipy import stats

    data = variables(forgetting=forgetting, finetuning_loss=finetuning_loss)
    y, x = data["forgetting"], data["finetuning_loss"]
    check_level(level)
    check_count(x.size, 2)
    if np.ptp(x) == 0:
        raise ValueError(f"c: cannot be identified, finetuning_loss takes one value ({x[0]:g})")
    line = stats.linregress(x, y)
    t = float(stats.t.ppf((1 + level) / 2, x.size - 2))
    s, c = float(line.intercept), -float(line.slope)
    s_error, c_error = float(line.intercept_stderr), float(line.stderr)
    return FineTuningLossLaw(
        s=Estimate(s, s_error, s - t * s_error, s + t * s_error),
        c=Estimate(c, c_error, c - t * c_error, c + t * c_error),
        r2=float(line.rvalue) ** 2,
        ranges=ranges_of(finetuning_loss=x),
        residual=float(np.sqrt(np.sum((y - s + c * x) ** 2) / (x.size - 2))),
        points=x.size,
        level=level,
    )
