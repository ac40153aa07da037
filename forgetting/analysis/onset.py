"""When in a training forgetting happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Onset(NamedTuple):
    """Between which two looks a loss rose past its threshold: after step ``after``, and by step ``by``."""

    after: int
    by: int


def onset(steps: Sequence[int], losses: Sequence[float], share: float = 0.5) -> Onset | None:
    """Return when a loss first was at least ``share`` of its final rise above the base model's.

    The first k with L_k − L_0 ≥ share · (L_K − L_0), L_0 the first loss and L_K the last one. It is known up to the
    distance of the looks. For a score that is better when higher, give its negative.

    Args:
        steps: Increasing; the first one is the base model's.
        losses: One per step.
        share: In (0, 1].

    Returns:
        The look before and the one at which it was reached; ``None`` where the last loss is not above the first:
        then nothing was forgotten in the end, whatever happened in between.

    Raises:
        ValueError: if there are fewer than two looks, numbers differ, steps do not increase, a loss is not finite, or
            the share is not in (0, 1].
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(steps) < 2 or len(steps) != values.size:
        raise ValueError(f"steps and losses: are {len(steps)} and {values.size}; need as many of both, at least 2")
    if (np.diff(steps) <= 0).any():
        raise ValueError(f"steps: {list(steps)} do not increase")
    if not np.isfinite(values).all():
        raise ValueError("losses: hold a value that is not finite")
    if not 0 < share <= 1:
        raise ValueError(f"share: {share} is not in (0, 1]")
    rise = values - values[0]
    if not rise[-1] > 0:
        return None
    first = int(np.argmax(rise >= share * rise[-1]))
    return Onset(steps[first - 1], steps[first])
