"""The recovered share by hand, its interval against a search over all ratios, and its coverage in simulations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.recovery import recovered_share, recovery_table


@dataclass(frozen=True)
class Made:
    items: list[float]

    @property
    def value(self) -> float:
        return float(np.mean(self.items))


BASE = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
TUNED = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]


def test_the_share_by_hand_and_at_its_ends() -> None:
    after = [1, 1, 1, 0, 0, 0, 0, 0, 1, 0]  # .4, from .1 on the way to .9
    share = recovered_share(after, TUNED, BASE)
    assert share.mean == pytest.approx((0.4 - 0.1) / (0.9 - 0.1))
    assert (share.kind, share.n, share.level) == ("items", 10, 0.95) and share.low < share.mean < share.high
    nothing, everything = recovered_share(TUNED, TUNED, BASE), recovered_share(BASE, TUNED, BASE)
    assert [nothing.mean, nothing.low, nothing.high] == pytest.approx([0, 0, 0], abs=1e-12)
    assert [everything.mean, everything.low, everything.high] == pytest.approx([1, 1, 1], abs=1e-7)


def test_a_score_that_is_better_when_lower_gives_the_same() -> None:
    after = [1, 1, 1, 0, 0, 0, 0, 0, 1, 0]
    one = recovered_share(after, TUNED, BASE)
    other = recovered_share(*(5 - 3 * np.array(items) for items in (after, TUNED, BASE)))
    assert [one.mean, one.low, one.high] == pytest.approx([other.mean, other.low, other.high], rel=1e-9)


def test_the_interval_is_every_ratio_that_a_t_test_does_not_reject() -> None:
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(1.0, 0.5, 12), rng.normal(0.0, 0.5, 12)
    after = tuned + 0.4 * (base - tuned) + rng.normal(0, 0.4, 12)
    for level in (0.8, 0.95):
        share = recovered_share(after, tuned, base, level)
        ratios = np.linspace(-2, 3, 50001)
        differences = (after - tuned)[:, None] - ratios * (base - tuned)[:, None]
        kept = ratios[stats.ttest_1samp(differences, 0).pvalue >= 1 - level]
        assert np.ptp(np.diff(kept)) < 1e-6  # one interval
        assert [share.low, share.high] == pytest.approx([kept[0], kept[-1]], abs=2e-4)


def test_the_interval_covers_the_true_share() -> None:
    """Items from a known law with a share of .3: 95 % of 600 intervals have it, within 3.5 binomial errors."""
    rng, runs, hits = np.random.default_rng(1), 600, 0
    for _ in range(runs):
        loss = rng.normal(1.0, 1.0, 30)
        share = recovered_share(0.3 * loss + rng.normal(0, 0.5, 30), np.zeros(30), loss)
        hits += share.low <= 0.3 <= share.high
    assert abs(hits - 0.95 * runs) < 3.5 * math.sqrt(runs * 0.95 * 0.05)


def test_what_was_not_lost_cannot_be_recovered() -> None:
    one_lost = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    for base, tuned in ((BASE, BASE), (BASE, one_lost), ([1.0], [0.0])):
        share = recovered_share(base, tuned, base)
        assert all(math.isnan(value) for value in (share.mean, share.low, share.high))
    assert math.isnan(recovered_share(BASE, TUNED, BASE, 0.999999).mean)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="need one axis and the same items"):
        recovered_share(BASE, TUNED, BASE[:9])
    with pytest.raises(ValueError, match="need one axis"):
        recovered_share([], [], [])
    with pytest.raises(ValueError, match="not finite"):
        recovered_share([math.nan] * 10, TUNED, BASE)
    with pytest.raises(ValueError, match="level: 1 is not"):
        recovered_share(BASE, TUNED, BASE, 1)


def test_a_curve_becomes_a_table() -> None:
    half = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    curve = [
        (0, {"facts": Made(TUNED), "kept": Made(BASE)}),
        (5, {"facts": Made(half), "kept": Made(BASE)}),
    ]
    frame = recovery_table(curve, {"facts": Made(BASE), "kept": Made(BASE)})
    assert list(zip(frame["capability"], frame["step"], strict=True)) == [
        ("facts", 0), ("facts", 5), ("kept", 0), ("kept", 5),
    ]  # fmt: skip
    assert list(frame["score"]) == [0.1, 0.5, 0.9, 0.9] and set(frame["base"]) == {0.9}
    assert list(frame["recovered"][:2]) == pytest.approx([0, 0.5]) and frame["recovered"][2:].isna().all()
    expected = recovered_share(half, TUNED, BASE)
    assert frame.loc[1, ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
    with pytest.raises(ValueError, match="curve: does not begin with step 0"):
        recovery_table(curve[1:], curve[0][1])
    with pytest.raises(ValueError, match=r"curve: has \['facts', 'kept'\] at step 0, the base model \['facts'\]"):
        recovery_table(curve, {"facts": Made(BASE)})
