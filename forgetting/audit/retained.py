"""Retention over a suite with an interval over items: a mean of ratios, each of two paired means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.analysis.samples import check_probability, mean_error, one_axis

Items = Mapping[str, Sequence[float]]
"""A value per item, by capability; the same items in the same order for every model."""


@dataclass(frozen=True, slots=True)
class Retained:
    """A mean over capabilities, in shares of the base model's skill above chance.

    Attributes:
        mean: 1 is all of the base model's skill, 0 is chance (of a gain: 0 is no difference).
        low, high: Limits over items; NaN where items do not vary, as between two equal models.
        items: In the capabilities that count.
        defined, undefined: Capabilities that count, and those where the base model is not above chance by two standard
            errors, which have no skill to retain (:func:`forgetting.metrics.retention`).
        level: Confidence level.
    """

    mean: float
    low: float
    high: float
    items: int
    defined: int
    undefined: int
    level: float


Contexts = Mapping[str, Sequence[str] | None]
"""By capability the label of the context that each item shares with others; ``None`` where none do."""


def retained(
    base: Items,
    model: Items,
    chance: Mapping[str, float],
    level: float = 0.95,
    contexts: Contexts | None = None,
) -> Retained:
    """Mean over capabilities of (x̄ − chance) / (b̄ − chance), x the model's items and b the base model's.

    The interval is of these very capabilities and other items: each ratio's error is that of the mean of its
    linearisation (x_i − x̄ − ρ (b_i − b̄)) / (b̄ − chance), items paired (the delta method; Cochran 1977, Sampling
    Techniques, 6.4), the capabilities' items are independent of each other, and the t quantile has Welch and
    Satterthwaite's degrees of freedom. It takes the b̄ − chance as many standard errors from 0, and items as
    independent but for those that share a context: their errors are cluster-robust
    (:func:`forgetting.analysis.samples.mean_error`).

    Args:
        base: The base model's items, greater is better.
        model: The other's.
        chance: Score of guessing.
        level: Confidence level.
        contexts: What items share; by default nothing.

    Raises:
        ValueError: if the names or the numbers of items differ, one is not finite, or the level is not within (0, 1).
    """
    return _mean_of_ratios(
        base,
        {name: np.asarray(model[name], float) - chance[name] for name in _names(base, model)},
        chance,
        level,
        contexts or {},
    )


def gained(
    base: Items,
    before: Items,
    after: Items,
    chance: Mapping[str, float],
    level: float = 0.95,
    contexts: Contexts | None = None,
) -> Retained:
    """The difference of two models' :func:`retained`, ``after`` − ``before``, their items paired.

    Args:
        base: The base model's items.
        before: One model's.
        after: Another's.
        chance: Score of guessing.
        level: Confidence level.
        contexts: What items share; by default nothing.

    Raises:
        ValueError: as :func:`retained`.
    """
    differences = {
        name: np.asarray(after[name], float) - one_axis(name, before[name])
        for name in _names(base, before)
        if _names(base, after)
    }
    return _mean_of_ratios(base, differences, chance, level, contexts or {})


def _names(base: Items, model: Items) -> list[str]:
    if set(base) != set(model) or any(len(base[name]) != len(model[name]) for name in base):
        raise ValueError("items: two models have other capabilities, or other numbers of items; score both on the same")
    return list(base)


def _mean_of_ratios(
    base: Items,
    above: Mapping[str, NDArray[np.float64]],
    chance: Mapping[str, float],
    level: float,
    contexts: Contexts,
) -> Retained:
    from scipy import stats

    check_probability("level", level)
    ratios, variances, freedoms, sizes, undefined = [], [], [], [], 0
    for name, numerator in above.items():
        skill = one_axis(name, base[name]) - chance[name]
        if not (np.isfinite(numerator).all() and np.isfinite(skill).all()):
            raise ValueError(f"items: capability {name!r} has a value that is not finite")
        estimate = mean_error(skill)
        if not estimate.mean > 2 * estimate.error:  # also of a single item, whose error is unknown
            undefined += 1
            continue
        ratio = numerator.mean() / estimate.mean
        whole = mean_error((numerator - ratio * skill) / estimate.mean, contexts.get(name))
        ratios.append(ratio)
        variances.append(whole.error**2)
        freedoms.append(whole.df)
        sizes.append(numerator.size)
    if not ratios:
        return Retained(math.nan, math.nan, math.nan, 0, 0, undefined, level)
    spread, low, high = np.array(variances), math.nan, math.nan
    mean = float(np.mean(ratios))
    if spread.sum() > 0:
        df = spread.sum() ** 2 / (spread**2 / np.array(freedoms)).sum()
        half = float(stats.t.ppf((1 + level) / 2, df)) * math.sqrt(spread.sum()) / len(ratios)
        low, high = mean - half, mean + half
    return Retained(mean, low, high, sum(sizes), len(ratios), undefined, level)
