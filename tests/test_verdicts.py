"""Verdicts: what an interval, or several, say of a claim."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.analysis.equivalence import equivalence
from forgetting.analysis.stats import Interval, seed_interval
from forgetting.verdicts import Outcome, decide, decide_all, decide_below, decide_within, told


def interval(low: float, high: float) -> Interval:
    return Interval("seeds", (low + high) / 2, low, high, 3, 0.95, "t")


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "within"),
    [
        (0.1, 0.5, "holds", "fails", "undecided"),
        (-0.5, -0.1, "fails", "holds", "undecided"),
        (-0.1, 0.1, "undecided", "undecided", "holds"),
        (0.3, 0.5, "holds", "fails", "fails"),
        (float("nan"), float("nan"), "undecided", "undecided", "undecided"),
    ],
)
def test_a_verdict_needs_a_whole_interval(
    low: float, high: float, above: Outcome, below: Outcome, within: Outcome
) -> None:
    assert decide(interval(low, high)) == above
    assert decide_below(interval(low, high)) == below
    assert decide_within(interval(low, high), 0.2) == within


def test_within_a_margin_at_90_percent_is_the_test_of_equivalence_at_5() -> None:
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(300):
        before, after = rng.normal(0, 1, (2, 6))
        margin = float(rng.uniform(0.3, 3))
        shown.append(equivalence(before, after, margin, "seeds", 0.05).equivalent)
        assert (decide_within(seed_interval(after - before, 0.9), margin) == "holds") == shown[-1]
    assert 30 < sum(shown) < 270


def test_one_of_several_decides_without_being_picked_first() -> None:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(400):  # four true rises of .02 under noise of .05, ten seeds
        outcomes.append(decide_all(list(rng.normal(0.02, 0.05, (4, 10))))[0])
    assert outcomes.count("fails") / 400 < 0.025 + 3 * (0.025 * 0.975 / 400) ** 0.5
    assert decide_all([[1.0, 1.1, 0.9], [2.0, 2.1, 1.9]])[0] == "holds"
    outcome, least = decide_all([[1.0, 1.1, 0.9], [-2.0, -2.1, -1.9]])
    assert outcome == "fails" and least.mean == pytest.approx(-2.0)
    assert decide_all([[1.0, 1.1, 0.9], [-0.5, 0.6, 0.1]])[0] == "undecided"


def test_numbers_are_told_with_interval_level_and_n() -> None:
    assert told(seed_interval([0.1, 0.2, 0.3])) == "20 points (95% over seeds: -4.84 to 44.8, n = 3)"
    assert told(seed_interval([0.1]), 1, "nats") == "0.1 nats (no interval, n = 1)"
    undefined = told(seed_interval([0.1, float("nan"), 0.3]))
    assert undefined == "? points (undefined in some of n = 3 seeds)"
