"""Verdicts: on tables by hand, and false ones in simulation at most at their nominal rate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.paired_shares import score_statistic
from forgetting.audit import looks
from forgetting.audit.compare import Pair, pair
from forgetting.audit.schema import Settings
from forgetting.audit.verdict import judge
from tests.audit.panels import capability, flipped

SETTINGS = Settings()


def pairs(*tables: tuple[int, int, int, int]) -> list[Pair]:
    """A capability per (n, right, lost, gained)."""
    found = []
    for place, table in enumerate(tables):
        base, tuned = flipped(*table)
        found.append(pair(capability(f"c{place}", base), capability(f"c{place}", tuned)))
    return found


def test_an_untouched_copy_is_retained_and_says_so_of_every_capability() -> None:
    found = judge(pairs(*[(200, 150, 0, 0)] * 4), SETTINGS)
    assert found.verdict == "RETAINED" and {c.verdict for c in found.capabilities} == {"RETAINED"}
    assert found.mean is not None and found.mean.difference.value == 0 and found.items_to_decide is None


def test_one_lost_capability_is_enough_and_is_named() -> None:
    found = judge(pairs((200, 150, 40, 2), *[(200, 150, 0, 0)] * 7), SETTINGS)
    assert found.verdict == "REGRESSED" and "c0 (−19.0)" in found.why
    assert [c.verdict for c in found.capabilities] == ["REGRESSED", *["RETAINED"] * 7]
    first = found.capabilities[0]
    assert first.p_holm == pytest.approx(min(1, 9 * stats.binomtest(2, 42).pvalue))
    assert first.difference.high is not None and first.difference.high < 0


def test_a_loss_spread_over_all_is_found_in_the_mean() -> None:
    found = judge(pairs(*[(200, 150, 16, 6)] * 8), SETTINGS)
    assert {c.verdict for c in found.capabilities} == {"INCONCLUSIVE"}
    assert found.verdict == "REGRESSED" and "no capability by itself" in found.why


def test_a_real_loss_that_is_shown_to_be_below_the_margin_is_retained() -> None:
    found = judge(pairs((4000, 3000, 60, 20)), SETTINGS)
    (only,) = found.capabilities
    assert only.verdict == "RETAINED" and "real, and smaller than the margin" in only.why
    assert only.p_holm is not None and only.p_holm < 1e-4 and found.verdict == "RETAINED"
    assert judge(pairs((4000, 3000, 60, 20)), Settings(margin=0.005)).verdict == "REGRESSED"


def test_a_gain_is_no_forgetting() -> None:
    found = judge(pairs((200, 100, 5, 60)), SETTINGS)
    assert found.verdict == "RETAINED" and found.capabilities[0].p_gain == pytest.approx(1, abs=1e-6)


def test_a_mean_cannot_hide_a_capability_that_may_be_lost() -> None:
    wide = pairs((40, 36, 4, 1), *[(200, 150, 0, 0)] * 8)
    found = judge(wide, SETTINGS, plan=False)
    assert found.mean is not None and found.mean.p_margin < 0.05
    assert found.verdict == "INCONCLUSIVE" and "c0" in found.why
    assert judge(wide, Settings(worst=0.5), plan=False).verdict == "RETAINED"


def test_too_few_items_say_how_many_would_decide_and_as_many_do() -> None:
    found = judge(pairs(*[(20, 16, 0, 0)] * 3), SETTINGS)
    assert found.verdict == "INCONCLUSIVE" and found.items_to_decide is not None and found.items_to_decide > 20
    assert f"About {found.items_to_decide} items per capability would decide" in found.why
    assert judge(pairs(*[(found.items_to_decide, found.items_to_decide - 2, 0, 0)] * 3), SETTINGS).verdict == "RETAINED"
    # A loss of 10 points that 40 items cannot tell from chance: at the number the power is the one asked for.
    number = judge(pairs((40, 36, 6, 2)), SETTINGS).items_to_decide
    assert number is not None
    generator, decided = np.random.default_rng(0), 0
    for _ in range(40):
        lost, gained, _ = generator.multinomial(number, [6.5 / 41, 2.5 / 41, 32 / 41])
        decided += judge(pairs((number, number - gained, lost, gained)), SETTINGS, plan=False).verdict != "INCONCLUSIVE"
    assert stats.binomtest(decided, 40, 0.8, "less").pvalue > 0.01


def test_nothing_that_can_be_judged_is_inconclusive() -> None:
    base = np.tile([0.0, 1.0], 50)
    found = judge([pair(capability("a", base), capability("a", base))], SETTINGS)
    assert found.verdict == "INCONCLUSIVE" and found.mean is None and found.capabilities[0].verdict is None


def simulate(generator: np.random.Generator, sizes: list[int], lost: list[float], gained: list[float]) -> list[Pair]:
    found = []
    for place, n in enumerate(sizes):
        fell, rose, _ = generator.multinomial(n, [lost[place], gained[place], 1 - lost[place] - gained[place]])
        found.append(pair(*(capability(f"c{place}", x) for x in flipped(n, n - rose, fell, rose))))
    return found


def test_false_verdicts_come_at_most_at_their_nominal_rate() -> None:
    """Whole judgements of three capabilities, 60 each: binomial bounds at 1%."""
    generator, times = np.random.default_rng(3), 60
    sizes = [60, 60, 40]
    nothing = [0.08] * 3
    regressed = sum(
        judge(simulate(generator, sizes, nothing, nothing), SETTINGS, plan=False).verdict == "REGRESSED"
        for _ in range(times)
    )
    assert stats.binomtest(regressed, times, SETTINGS.alpha, "greater").pvalue > 0.01
    margin = [0.03] * 3  # the mean's loss is the margin, and nothing is gained: the fewest flips
    retained = sum(
        judge(simulate(generator, sizes, margin, [0.0] * 3), SETTINGS, plan=False).verdict == "RETAINED"
        for _ in range(times)
    )
    assert stats.binomtest(retained, times, SETTINGS.alpha, "greater").pvalue > 0.01
    worst = [0.10, 0.0, 0.0]
    retained = sum(
        judge(simulate(generator, [60] * 3, worst, [0.0] * 3), SETTINGS, plan=False).verdict == "RETAINED"
        for _ in range(times)
    )
    assert stats.binomtest(retained, times, SETTINGS.alpha, "greater").pvalue > 0.01


def test_looking_often_does_not_raise_the_error_rate_where_looking_without_a_rule_does() -> None:
    """Of one capability of 800 items, 40,000 audits: the score tests at every look, at that look's level."""
    generator, times, n = np.random.default_rng(4), 40_000, 800
    levels = looks.alphas(SETTINGS.alpha)
    assert sum(levels) == pytest.approx(SETTINGS.alpha) and levels == sorted(levels)
    ends = [round(share * n) for share in looks.SHARES]
    bound = SETTINGS.alpha + 2.4 * np.sqrt(SETTINGS.alpha * (1 - SETTINGS.alpha) / times)
    for lost, gained, hypothesis in ((0.06, 0.06, 0.0), (0.05, 0.02, -SETTINGS.margin), (0.03, 0.0, -SETTINGS.margin)):
        steps = [generator.multinomial(m, [lost, gained, 1 - lost - gained], size=times) for m in np.diff([0, *ends])]
        seen = np.cumsum(steps, axis=0)  # (looks, audits, 3)
        false, careless = np.zeros(times, bool), np.zeros(times, bool)
        for counts, end, level in zip(seen, ends, levels, strict=True):
            z = score_statistic(counts[:, 0] / end, counts[:, 1] / end, end, hypothesis)
            # REGRESSED is the lower tail of no difference, two-sided; RETAINED the upper tail of the margin.
            for flags, alpha in ((false, level), (careless, SETTINGS.alpha)):
                flags |= z < stats.t.ppf(alpha / 2, end - 1) if hypothesis == 0 else z > stats.t.isf(alpha, end - 1)
        assert false.mean() < (bound / 2 if hypothesis == 0 else bound)
        assert careless.mean() > 1.3 * false.mean()


def test_parts_are_disjoint_random_and_whole() -> None:
    found = looks.parts({"a": 80, "b": 3})
    assert [len(part.get("a", [])) for part in found] == [10, 10, 20, 40]
    assert sorted(place for part in found for place in part["a"]) == list(range(80))
    assert sorted(place for part in found for place in part.get("b", [])) == [0, 1, 2]
    assert found[0]["a"] != list(range(10)) and found == looks.parts({"a": 80, "b": 3})
