"""The onset of a rise, by hand and against a loop."""

from __future__ import annotations

import math
import random

import pytest

from forgetting.analysis.onset import onset

STEPS = [0, 5, 10, 20, 40]


def test_the_first_look_at_which_the_share_is_reached() -> None:
    losses = [1.0, 1.1, 1.5, 1.9, 2.0]
    assert onset(STEPS, losses) == (5, 10)
    assert onset(STEPS, losses, 0.1) == (0, 5)
    assert onset(STEPS, losses, 0.51) == (10, 20)
    assert onset(STEPS, losses, 1.0) == (20, 40)
    rise = onset(STEPS, losses)
    assert rise is not None and (rise.after, rise.by) == (5, 10)


def test_a_loss_that_is_back_at_the_end_has_none_and_a_peak_counts() -> None:
    assert onset(STEPS, [1.0, 3.0, 3.0, 2.0, 1.0]) is None
    assert onset(STEPS, [1.0, 0.9, 0.8, 0.7, 0.6]) is None
    assert onset(STEPS, [1.0, 3.0, 0.5, 0.7, 1.2]) == (0, 5)


def test_it_equals_a_loop_and_does_not_depend_on_units() -> None:
    rng = random.Random(0)
    for _ in range(50):
        losses = [rng.random() for _ in STEPS]
        share = rng.uniform(0.05, 1)
        rise = losses[-1] - losses[0]
        found = next((k for k in range(5) if losses[k] - losses[0] >= share * rise), None) if rise > 0 else None
        assert onset(STEPS, losses, share) == (None if found is None else (STEPS[found - 1], STEPS[found]))
        assert onset(STEPS, [8 * loss + 4 for loss in losses], share) == onset(STEPS, losses, share)


@pytest.mark.parametrize(
    ("steps", "losses", "share", "problem"),
    [
        ([0], [1.0], 0.5, "are 1 and 1"),
        ([0, 1], [1.0], 0.5, "are 2 and 1"),
        ([0, 0], [1.0, 2.0], 0.5, "do not increase"),
        ([0, 1], [1.0, math.nan], 0.5, "not finite"),
        ([0, 1], [1.0, 2.0], 0.0, "share: 0.0 is not"),
    ],
)
def test_bad_input_is_named(steps: list[int], losses: list[float], share: float, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        onset(steps, losses, share)
