"""Verdicts: on tables by hand, and false ones in simulation at about their nominal rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from forgetting.analysis.paired_shares import score_statistic
from forgetting.analysis.significance import mcnemar
from forgetting.audit import looks
from forgetting.audit.compare import Pair, pair
from forgetting.audit.items import Item, Measured
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


ITEMS = (Item("task", {}, 0.0), Item("task", {}, 1.0))
Sides = tuple[np.ndarray, np.ndarray]


def of_sides(name: str, sides: Sides) -> Pair:
    """A capability of two choices by its outcomes alone."""
    base, tuned = (Measured(name, "acc", 0.5, True, "1", tuple(ITEMS[int(x)] for x in side)) for side in sides)
    return Pair(base, tuned, None)


def drawn(generator: np.random.Generator, n: int, base: float, keeps: float, gains: float = 0.0) -> Sides:
    """Right at a rate of ``base``; after, of these at a rate of ``keeps``, of the others at a rate of ``gains``."""
    before = generator.random(n) < base
    return before, generator.random(n) < np.where(before, keeps, gains)


def untouched(n: int) -> Sides:
    return np.ones(n), np.ones(n)


def whole(capabilities: list[Sides]) -> str:
    found = [of_sides(f"c{place}", sides) for place, sides in enumerate(capabilities)]
    return judge(found, SETTINGS, plan=False).verdict


def in_looks(capabilities: list[Sides]) -> str:
    """The sequential audit's loop, on outcomes."""
    named = {f"c{place}": sides for place, sides in enumerate(capabilities)}
    seen: dict[str, list[int]] = {name: [] for name in named}
    verdict = ""
    for part, level in zip(
        looks.parts({name: len(sides[0]) for name, sides in named.items()}), looks.alphas(SETTINGS.alpha), strict=True
    ):
        for name, places in part.items():
            seen[name] += places
        found = [
            of_sides(name, (named[name][0][places], named[name][1][places])) for name, places in seen.items() if places
        ]
        unseen = [name for name, places in seen.items() if not places]
        verdict = judge(found, SETTINGS, alpha=level, plan=False, unseen=unseen).verdict
        if verdict != "INCONCLUSIVE":
            break
    return verdict


def times_of(verdict: str, make: Callable[[], list[Sides]], rule: Callable[[list[Sides]], str], times: int) -> int:
    return sum(rule(make()) == verdict for _ in range(times))


def not_above(count: int, times: int, rate: float = SETTINGS.alpha) -> bool:
    """Whether a count is compatible with the rate: binomial, at 1%."""
    return stats.binomtest(count, times, rate, "greater").pvalue > 0.01


def test_where_nothing_changed_regressed_comes_at_its_nominal_rate() -> None:
    """Also of many capabilities at chance, of which a few seem judged by luck."""
    generator = np.random.default_rng(3)

    def guesses() -> list[Sides]:
        return [drawn(generator, 100, 0.5, 0.5, 0.5) for _ in range(67)]

    assert not_above(times_of("REGRESSED", guesses, whole, 20), 20)
    # Why: being judged says nothing of the difference. (By the better of both scores, a third of the judged differ.)
    chosen = [found for _ in range(6000) if (found := of_sides("c", drawn(generator, 100, 0.5, 0.5, 0.5))).judged]
    differ = sum(mcnemar(*found.outcomes).p_value <= 0.05 for found in chosen)
    assert len(chosen) > 60 and not_above(differ, len(chosen))

    def noise() -> list[Sides]:
        return [drawn(generator, n, 0.7, 0.9, 0.7 / 3) for n in (40, 60, 600)]

    for rule in (whole, in_looks):
        assert not_above(times_of("REGRESSED", noise, rule, 60), 60)


def test_where_the_mean_lost_the_margin_retained_comes_at_its_nominal_rate() -> None:
    """In capabilities of equal and of unequal size, with nothing gained (the fewest flips) and with noise."""
    generator = np.random.default_rng(5)

    def spread() -> list[Sides]:
        return [drawn(generator, n, 1.0, 0.97) for n in (60, 60, 200)]

    def in_the_small_one() -> list[Sides]:
        return [drawn(generator, 60, 0.95, 0.88, 0.48), untouched(800), untouched(800)]

    assert not_above(times_of("RETAINED", spread, whole, 100), 100)
    assert not_above(times_of("RETAINED", in_the_small_one, whole, 100), 100)
    assert not_above(times_of("RETAINED", spread, in_looks, 40), 40)


@pytest.mark.parametrize("n", [60, 100, 200])
def test_where_a_small_capability_is_lost_retained_comes_at_its_nominal_rate(n: int) -> None:
    """It has 10 points above chance, loses all, and is often too near chance to be judged."""
    generator = np.random.default_rng(n)

    def lost() -> list[Sides]:
        return [untouched(2000), drawn(generator, n, 0.6, 0.5, 0.5)]

    assert not_above(times_of("RETAINED", lost, whole, 120), 120)
    assert not_above(times_of("RETAINED", lost, in_looks, 40), 40)


def test_an_early_look_does_not_retain_what_it_has_hardly_seen() -> None:
    generator = np.random.default_rng(7)

    def lost() -> list[Sides]:
        return [untouched(800), untouched(800), drawn(generator, 104, 0.69, 0.33)]

    assert times_of("RETAINED", lost, in_looks, 20) == 0
    everything = [of_sides("a", untouched(800))]
    assert judge(everything, SETTINGS, plan=False).verdict == "RETAINED"
    waits = judge(everything, SETTINGS, plan=False, unseen=["copa"])
    assert waits.verdict == "INCONCLUSIVE" and "not ruled out on copa" in waits.why


def test_a_collapse_to_below_chance_is_judged() -> None:
    found = judge(pairs((60, 50, 30, 0)), SETTINGS)  # 83% to 33%: the mean of both is near chance
    assert found.verdict == "REGRESSED"


def test_a_capability_that_the_base_has_not_blocks_retained_while_it_might_have_it() -> None:
    base, tuned = np.tile([0, 1], 400), np.tile([1, 0, 0, 1], 200)
    blocked = judge([of_sides("big", untouched(2000)), of_sides("few", (base[:40], tuned[:40]))], SETTINGS)
    assert blocked.verdict == "INCONCLUSIVE" and "not ruled out on few" in blocked.why
    assert blocked.items_to_decide is not None and blocked.items_to_decide > 40
    free = judge([of_sides("big", untouched(2000)), of_sides("many", (base, tuned))], SETTINGS)
    assert free.verdict == "RETAINED" and free.why.startswith("A loss of 3 points or more on average")
    assert (
        "any of the 1 judged" in free.why and "near chance, with no such loss or not so much to lose: many" in free.why
    )
    # The base's part of it is the score test of one share, at the share that would be worth losing.
    p = free.capabilities[1].p_chance
    assert p == pytest.approx(stats.t.cdf(-0.1 / np.sqrt(0.6 * 0.4 / 800), 799))


def texts(name: str, base: np.ndarray, tuned: np.ndarray, contexts: list[str] | None = None) -> Pair:
    """A perplexity of documents, by their nats per byte alone."""
    sides = [tuple(Item("task", {}, float(x)) for x in side) for side in (base, tuned)]
    return Pair(*(Measured(name, "bits_per_byte", 0.0, False, "1", items) for items in sides), contexts)


def test_what_margins_are_not_of_is_named_as_not_covered() -> None:
    base, tuned = flipped(50, right=20, lost=10, gained=0)
    sides = (capability("bias", x, higher=False, chance=0, metric="pct_stereotype") for x in (base, tuned))
    found = judge([of_sides("big", untouched(2000)), pair(*sides)], SETTINGS)
    assert found.verdict == "RETAINED" and "not covered: bias (pct_stereotype 0.4 → 0.2)" in found.why


def test_a_perplexity_that_rose_has_regressed_and_one_that_fell_has_not() -> None:
    generator = np.random.default_rng(2)
    base = generator.gamma(25, 0.03, 60)  # nats per byte: within [0, 1], and yet no share
    worse, noise = base * (1.1 + 0.02 * generator.standard_normal(60)), 0.01 * generator.standard_normal(60)
    big = of_sides("big", untouched(2000))
    found = judge([big, texts("wiki", base, worse)], SETTINGS)
    assert found.verdict == "REGRESSED" and "Lost beyond chance: wiki (+" in found.why and "%)" in found.why
    assert found.mean is not None and found.mean.capabilities == 1  # points and nats have no mean
    assert found.capabilities[0].p_holm == pytest.approx(1)
    for tuned in (base, base * (1 + noise), worse[::-1] * 0.5):
        kept = judge([big, texts("wiki", base, tuned)], SETTINGS)
        assert kept.verdict == "RETAINED" and "a rise of 3% of the bits or more is ruled out on wiki" in kept.why
    alone = judge([texts("wiki", base, worse)], SETTINGS)
    assert alone.verdict == "REGRESSED" and alone.mean is None
    small = judge([texts("wiki", base, base * (1.01 + noise))], SETTINGS)
    assert small.verdict == "RETAINED" and "the loss is real, and smaller" in small.capabilities[0].why


def test_a_perplexity_that_may_have_risen_says_how_many_texts_decide_and_as_many_do() -> None:
    generator = np.random.default_rng(6)

    def drawn_texts(n: int) -> Pair:
        base = generator.gamma(25, 0.04, n)
        return texts("wiki", base, base * (1 + 0.2 * generator.standard_normal(n)))

    spread, wide = np.tile([-1.0, 1.0], 20), np.tile([-1.0, -1.0, 1.0, 1.0], 10)
    base = 1 + 0.2 * wide
    found = judge([of_sides("big", untouched(2000)), texts("wiki", base, base + 0.2 * spread)], SETTINGS)
    assert found.verdict == "INCONCLUSIVE" and "A rise of 3% of the bits or more is not ruled out on wiki" in found.why
    number = found.capabilities[1].items_to_decide
    assert number is not None and 300 < number < 600 and found.items_to_decide == max(number, 2001)
    decided = sum(judge([drawn_texts(number)], SETTINGS, plan=False).verdict == "RETAINED" for _ in range(40))
    assert stats.binomtest(decided, 40, 0.8, "less").pvalue > 0.01
    few = judge([texts("wiki", base[:20], 2 * base[:20])], SETTINGS)
    assert few.verdict == "INCONCLUSIVE" and "of 20 texts; 30 decide, or more" in few.capabilities[0].why


def test_false_verdicts_on_texts_come_at_their_nominal_rate() -> None:
    """At the margin and where nothing changed; normal and skewed differences, whole, in contexts, and in looks."""
    generator, n = np.random.default_rng(8), 120
    contexts = [f"book {k // 2}" for k in range(n)]

    def one(rise: float, skewed: bool, shared: bool) -> Pair:
        base = generator.gamma(25, 0.04, n)
        noise = generator.exponential(1.0, n) - 1 if skewed else generator.standard_normal(n)
        noise = np.repeat(noise[::2], 2) if shared else noise
        return texts("wiki", base, base * (1 + rise + 0.05 * noise), contexts if shared else None)

    for skewed in (False, True):
        for shared in (False, True):
            at_margin, unchanged = ([one(rise, skewed, shared) for _ in range(100)] for rise in (SETTINGS.rise, 0.0))
            retained = sum(judge([p], SETTINGS, plan=False).verdict == "RETAINED" for p in at_margin)
            regressed = sum(judge([p], SETTINGS, plan=False).verdict == "REGRESSED" for p in unchanged)
            assert not_above(retained, 100) and not_above(regressed, 100)
    careless = [replace(one(SETTINGS.rise, False, True), contexts=None) for _ in range(100)]
    assert not not_above(sum(judge([p], SETTINGS, plan=False).verdict == "RETAINED" for p in careless), 100)


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
    assert found[0]["a"] != list(range(10)) and found == looks.parts({"b": 3, "a": 80})
