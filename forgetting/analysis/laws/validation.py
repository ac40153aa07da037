"""How well a law predicts what it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.laws.fitting import Floats, Range, variables


class Law(Protocol):
    """What every fitted law has."""

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Smallest and largest fitted value of each variable."""

    @property
    def predict(self) -> Callable[..., Floats]:
        """``predict(variable=…, extrapolate=False)``."""


Fit = Callable[..., Law]
"""A law's fitting function: what it predicts first, its variables by keyword."""


@dataclass(frozen=True, slots=True)
class HeldOutError:
    """The error of predictions of points that were not fitted.

    Attributes:
        relative: Mean of |prediction − value| / |value|; NaN where a value is 0. Of a loss it is small whatever the
            law, since most of a loss is there before fine-tuning: compare ``rmse`` with ``rmse_of_mean``.
        rmse: Root mean square of prediction − value, in the values' unit.
        rmse_of_mean: That of predicting the mean of the fitted points instead.
        points: How many were held out.
    """

    relative: float
    rmse: float
    rmse_of_mean: float
    points: int


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Errors by the group that was left out, and of all left-out points together."""

    pooled: HeldOutError
    groups: Mapping[str, HeldOutError]


def held_out_error(
    fit: Fit, data: Mapping[str, ArrayLike], *, target: str, held_out: ArrayLike, extrapolate: bool = False
) -> HeldOutError:
    """Fit a law on some points and return its error on the others.

    Args:
        fit: For instance :func:`fit_injection`; other arguments of it by ``functools.partial``.
        data: The law's variables and target by name, each (n,).
        target: Which of them the law predicts.
        held_out: (n,) bool: the points that are predicted, not fitted.
        extrapolate: Whether held-out points may lie outside the fitted ranges.

    Raises:
        ValueError: if the mask has another shape, or leaves nothing on one side; whatever the fit raises; where a
            held-out point is outside the fitted ranges, unless ``extrapolate``.
    """
    arrays = _data(data, target)
    mask = np.asarray(held_out)
    if mask.dtype != np.bool_ or mask.shape != arrays[target].shape:
        raise ValueError(f"held_out: is {mask.dtype} of shape {mask.shape}; need bool, {arrays[target].shape}")
    if mask.all() or not mask.any():
        raise ValueError(f"held_out: {int(mask.sum())} of {mask.size} points; some must be held out, and some fitted")
    predicted = _predict(fit, arrays, target, mask, extrapolate)
    mean = np.full(predicted.size, arrays[target][~mask].mean())
    return _error(arrays[target][mask], predicted, mean)


def leave_one_group_out(
    fit: Fit, data: Mapping[str, ArrayLike], *, target: str, groups: Iterable[object], extrapolate: bool = False
) -> CrossValidation:
    """Leave out each group of points in turn, fit the law on the rest, and predict the group.

    Args:
        fit: As in :func:`held_out_error`.
        data: The law's variables and target by name, each (n,).
        target: Which of them the law predicts.
        groups: The group of each point (a model, a task, a seed), n of them.
        extrapolate: Whether a group may lie outside the ranges of the rest, as one at an end of a variable does.

    Raises:
        ValueError: if there are fewer than two groups; where a fit or a prediction raises, with the group left out.
    """
    arrays = _data(data, target)
    observed = arrays[target]
    names = np.array([str(group) for group in groups])
    distinct = sorted(set(names.tolist()))
    if names.size != observed.size or len(distinct) < 2:
        raise ValueError(f"groups: {names.size} of {len(distinct)} kinds; need {observed.size}, of at least two")
    predicted, means = np.empty_like(observed), np.empty_like(observed)
    errors = {}
    for name in distinct:
        mask = names == name
        try:
            predicted[mask] = _predict(fit, arrays, target, mask, extrapolate)
        except ValueError as error:
            raise ValueError(f"groups: without {name!r}: {error}") from error
        means[mask] = observed[~mask].mean()
        errors[name] = _error(observed[mask], predicted[mask], means[mask])
    return CrossValidation(_error(observed, predicted, means), errors)


def _data(data: Mapping[str, ArrayLike], target: str) -> dict[str, Floats]:
    if target not in data:
        raise ValueError(f"target: {target!r} is none of {', '.join(data)}")
    return variables(**data)


def _predict(fit: Fit, arrays: Mapping[str, Floats], target: str, mask: NDArray[np.bool_], extrapolate: bool) -> Floats:
    rest = {name: values for name, values in arrays.items() if name != target}
    law = fit(arrays[target][~mask], **{name: values[~mask] for name, values in rest.items()})
    return law.predict(**{name: values[mask] for name, values in rest.items()}, extrapolate=extrapolate)


def _error(observed: Floats, predicted: Floats, mean: Floats) -> HeldOutError:
    difference = np.abs(predicted - observed)
    relative = float(np.mean(difference / np.abs(observed))) if (observed != 0).all() else float("nan")
    return HeldOutError(
        relative=relative,
        rmse=float(np.sqrt(np.mean(difference**2))),
        rmse_of_mean=float(np.sqrt(np.mean((mean - observed) ** 2))),
        points=observed.size,
    )
