"""The second-order prediction ½ Δθᵀ F Δθ of what a change of the weights costs, from a diagonal Fisher information.

F at the weights θ is the Hessian, at Δθ = 0, of the divergence KL(p_θ ‖ p_{θ+Δθ}) of the model's predictions (of
KL(p_{θ+Δθ} ‖ p_θ) too), so ½ Δθᵀ F Δθ is that divergence to second order. It is also the rise of the loss on the text
that F was taken on, as far as the model's predictions are that text's distribution: then the loss has no slope at θ,
and F is its Hessian. That is what EWC assumes (Kirkpatrick et al. 2017, arXiv 1612.00796). The diagonal leaves out what
two parameters do together, and may err on either side.

Units. :class:`forgetting.fisher.DiagonalFisher` is the mean over examples of (∂ log p(example) / ∂θ)², log p summed
over the example's predicted labels, so the quadratic form is in nats per example (per sequence). Divided by the mean
number of predicted labels per example, it is in nats per token: comparable with ΔCE and KL on the same text, which
are sums over all tokens divided by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from forgetting.analysis.laws.fitting import Floats, check_level, variables

if TYPE_CHECKING:
    from torch import Tensor

    from forgetting.fisher import DiagonalFisher


@dataclass(frozen=True, slots=True)
class SecondOrderRise:
    """½ Δθᵀ F Δθ over the parameters that the Fisher information has.

    Attributes:
        per_example: Nats per example (sequence).
        tokens_per_example: Mean number of predicted labels of the Fisher information's examples.
        parameters: Its numbers.
    """

    per_example: float
    tokens_per_example: float
    parameters: int

    @property
    def per_token(self) -> float:
        """Nats per predicted token."""
        return self.per_example / self.tokens_per_example


def second_order_rise(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], fisher: DiagonalFisher
) -> SecondOrderRise:
    """Return ½ Σ_i F_i (θ_after,i − θ_before,i)², in float64, over the parameters of ``fisher``.

    What the Fisher information lacks (frozen or deselected parameters, buffers) is left out, moved or not.

    Args:
        before: State dict of the model that the Fisher information was taken of.
        after: State dict of the tuned model.
        fisher: Of estimator ``exact``, ``sample`` or ``empirical``.

    Raises:
        ValueError: naming the parameter that a state dict lacks or has in another shape, or that is not finite; or
            for an estimator whose unit is not the example: ``batched`` shrinks with the batch, ``positionwise`` leaves
            out what positions do together.
    """
    import torch

    if fisher.unit != "example":
        raise ValueError(f"fisher: estimator {fisher.estimator!r} squares per {fisher.unit}; need one per example")
    rise, numbers = 0.0, 0
    for name, value in fisher.values.items():
        states = []
        for kind, state in (("before", before), ("after", after)):
            if name not in state:
                raise ValueError(f"{kind}: has no parameter {name}, which the Fisher information has")
            if state[name].shape != value.shape:
                raise ValueError(
                    f"{kind}: parameter {name} has shape {tuple(state[name].shape)}, in the Fisher information "
                    f"{tuple(value.shape)}"
                )
            states.append(state[name].detach().to(value.device, torch.float64))
        part = float((value.detach().double() * (states[1] - states[0]).square()).sum()) / 2
        if not np.isfinite(part):
            raise ValueError(f"parameter {name}: a weight or its Fisher information is not finite")
        rise, numbers = rise + part, numbers + value.numel()
    return SecondOrderRise(rise, fisher.tokens / fisher.examples, numbers)


@dataclass(frozen=True, slots=True)
class PredictionRatios:
    """Predicted rises against measured ones.

    Attributes:
        ratios: predicted / observed of each point, (n,).
        relative_errors: (predicted − observed) / observed, (n,).
        mean_relative_error: Mean of their absolute values.
        ratio: Geometric mean of the ratios; 1 is right on average, 2 twice too much.
        low, high: Student's t interval of ``ratio`` over points, taken on logarithms; NaN for one point.
        rank_correlation: Spearman's, of predicted and observed; NaN for fewer than three points, or where all of
            either are equal. High beside a ratio far from 1: right in order, wrong in size.
    """

    ratios: Floats
    relative_errors: Floats
    mean_relative_error: float
    ratio: float
    low: float
    high: float
    rank_correlation: float


def prediction_ratios(predicted: ArrayLike, observed: ArrayLike, *, level: float = 0.95) -> PredictionRatios:
    """Compare predicted with measured rises over several points, both in the same unit.

    Args:
        predicted: Such as ``per_token`` of n tuned models, shape (n,), above 0.
        observed: Such as their ΔCE or KL on held-out text, nats per token, shape (n,), above 0.
        level: Of the interval.

    Raises:
        ValueError: if the shapes differ, or a rise is not above 0: a fall has no ratio with a rise.
    """
    from scipy import stats

    data = variables(predicted=predicted, observed=observed)
    check_level(level)
    for name, values in data.items():
        if (values <= 0).any():
            place = int(np.flatnonzero(values <= 0)[0])
            raise ValueError(f"{name}: {values[place]} at point {place} is not above 0; a ratio is of two rises")
    p, o = data["predicted"], data["observed"]
    logs = np.log(p / o)
    limits = (float("nan"), float("nan"))
    if logs.size > 1:
        interval = stats.ttest_1samp(logs, 0.0).confidence_interval(level)
        limits = float(np.exp(interval.low)), float(np.exp(interval.high))
    ranked = p.size >= 3 and np.ptp(p) > 0 and np.ptp(o) > 0
    return PredictionRatios(
        ratios=p / o,
        relative_errors=p / o - 1,
        mean_relative_error=float(np.abs(p / o - 1).mean()),
        ratio=float(np.exp(logs.mean())),
        low=limits[0],
        high=limits[1],
        rank_correlation=float(stats.spearmanr(p, o).statistic) if ranked else float("nan"),
    )
