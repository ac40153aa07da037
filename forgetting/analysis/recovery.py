"""How much of what was lost comes back: the recovered share, with an interval over items, and a table of a curve.

What comes back after a few steps, or with a better prompt, was not gone: Zheng et al. 2025 (Spurious Forgetting in
Continual Learning of Language Models, arXiv 2501.13453) call its loss spurious forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

from forgetting.analysis.ratios import ratio_interval
from forgetting.analysis.stats import Interval

if TYPE_CHECKING:
    import pandas as pd


class Score(Protocol):
    """A score and what it is the mean of: ``TaskScore``, ``CapabilityScore``."""

    @property
    def value(self) -> float:
        """The score."""

    @property
    def items(self) -> Sequence[float]:
        """A value per item, in an order that is the same for all models."""


def recovered_share(
    after: ArrayLike, tuned: ArrayLike, base: ArrayLike, level: float = 0.95, clusters: ArrayLike | None = None
) -> Interval:
    """(s_after − s_tuned) / (s_base − s_tuned): the share of a change that was undone, s the mean over items.

    0 is the tuned model's score, 1 the base model's; whether higher scores are better does not matter. The interval
    is :func:`forgetting.analysis.ratios.ratio_interval`'s.

    Args:
        after: The tuned model's items after relearning, or with a prompt, shape (n,).
        tuned: The tuned model's, on the same items in the same order.
        base: The base model's.
        level: Confidence level.
        clusters: The context of each item, shape (n,); by default items are independent.

    Returns:
        Of kind ``items``. All NaN where base and tuned do not differ at that level, or there is one unit: what was not
        lost cannot be recovered, and the quotient would be noise.

    Raises:
        ValueError: if the shapes differ or are empty, a value is not finite, there is not one label per
            item, or the level is not between 0 and 1.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in (after, tuned, base)]
    shapes = [array.shape for array in arrays]
    if arrays[0].ndim != 1 or not arrays[0].size or len(set(shapes)) > 1:
        raise ValueError(f"after, tuned and base: have shapes {shapes}; need one axis and the same items in all three")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("after, tuned and base: hold a value that is not finite")
    return ratio_interval(arrays[0] - arrays[1], arrays[2] - arrays[1], level, clusters)


def recovery_table(
    curve: Sequence[tuple[int, Mapping[str, Score]]],
    base: Mapping[str, Score],
    level: float = 0.95,
    contexts: Mapping[str, Sequence[str] | None] | None = None,
) -> pd.DataFrame:
    """Tabulate a relearning curve: how much of every capability's loss is undone after k steps.

    Args:
        curve: (k, score by capability), k = 0 first, which is the tuned model as it was
            (:func:`forgetting.evaluation.relearning.relearning_curve`).
        base: The base model's scores on the same items.
        level: Confidence level.
        contexts: By capability the context of each item; by default, and where ``None``, items are independent.

    Returns:
        A row per capability and k: ``capability``, ``step``, ``score``, ``base``, and ``recovered`` with its limits
        ``low`` and ``high`` (:func:`recovered_share`, of the items' means; NaN where nothing was lost).

    Raises:
        ValueError: if the curve does not begin with step 0, or capabilities or numbers of items differ.
    """
    import pandas as pd

    if not curve or curve[0][0] != 0:
        raise ValueError("curve: does not begin with step 0, the tuned model as it was")
    rows = []
    for name in base:
        for step, scores in curve:
            if set(scores) != set(base):
                raise ValueError(f"curve: has {sorted(scores)} at step {step}, the base model {sorted(base)}")
            tuned = curve[0][1][name]
            labels = (contexts or {}).get(name)
            share = recovered_share(scores[name].items, tuned.items, base[name].items, level, labels)
            row = {"capability": name, "step": step, "score": scores[name].value, "base": base[name].value}
            rows.append({**row, "recovered": share.mean, "low": share.low, "high": share.high})
    return pd.DataFrame(rows)
