"""REGRESSED, RETAINED or INCONCLUSIVE: how tests of capabilities make a verdict, and what its error rates are.

With C judged capabilities (:attr:`~forgetting.audit.compare.Pair.judged`) and their mean, each counting the same:

- A capability (or the mean) has REGRESSED if its interval is below zero, its two-sided p-value after Holm's correction
  over the C + 1 tests is at most alpha, and its loss is not shown to be below the margin.
- It is RETAINED if its loss is shown to be below the margin: TOST's lower test at alpha. (The upper one, which a gain
  above the margin fails, is reported: a gain is no forgetting.) A loss that is real and shown to be smaller than what
  the user said not to matter is RETAINED.
- Else it is INCONCLUSIVE.

The audit has REGRESSED if a capability or the mean has. It is RETAINED if none has, the mean is RETAINED, and of every
capability a loss of ``worst`` or more is ruled out. Else it is INCONCLUSIVE. A capability that is not judged (both
models are near chance) must pass too: its loss of ``worst`` is ruled out, or its base is shown to have less than that
above chance to lose, each at alpha / 2. What margins are not of (a perplexity) is named as not covered.

Error rates: where nothing changed, REGRESSED at a rate of about alpha or less (Holm 1979; the choice of what is judged
is by the mean of both scores, which says nothing of their difference). Where the mean lost the margin or more, or any
capability ``worst`` or more, RETAINED at a rate of about alpha, without a correction: all of the tests must reject
(Berger 1982, Technometrics 24:295). About: the score test's size swings around alpha with the number of items (up to
6.4% at 5% with 30 to 1,200 items, a margin of 3 points and nothing gained). A sequential audit gives each look a part
of alpha, and the parts sum to alpha (:mod:`forgetting.audit.looks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from forgetting.analysis.paired_shares import PairedShares, paired_shares
from forgetting.analysis.power import items_for_equivalence, items_for_flips
from forgetting.analysis.significance import holm
from forgetting.audit.compare import Pair, compare, difference_of
from forgetting.audit.schema import Call, Capability, Mean, Noise, Settings


@dataclass(frozen=True)
class Judgement:
    """What :func:`judge` concludes; the fields are those of :class:`~forgetting.audit.schema.Verdict`."""

    verdict: Call
    why: str
    items_to_decide: int | None
    capabilities: list[Capability]
    mean: Mean | None


def judge(
    pairs: Sequence[Pair],
    settings: Settings,
    *,
    alpha: float | None = None,
    noise: Mapping[str, Noise] | None = None,
    plan: bool = True,
    unseen: Sequence[str] = (),
) -> Judgement:
    """Compare all capabilities and conclude.

    Args:
        pairs: Capabilities of both models.
        settings: Margins and error rate.
        alpha: This look's part of the error rate; all of it by default. Intervals stay at 1 − ``settings.alpha``.
        noise: Of the A/A run, by capability.
        plan: Say how many items would decide what is not decided (seconds of arithmetic).
        unseen: Capabilities of which a sequential audit has no item yet: RETAINED waits for them.
    """
    level = settings.alpha if alpha is None else alpha
    found = [compare(pair, settings, (noise or {}).get(pair.base.name)) for pair in pairs]
    judged = [(record, pair) for record, pair in zip(found, pairs, strict=True) if pair.judged]
    for record, pair in zip(found, pairs, strict=True):
        if not pair.judged:
            record.why = "not judged: " + (
                "the mean of both models is not above chance by two standard errors, and neither is by five"
                if pair.shares
                else f"{record.metric} is no share of right items, which margins are of"
            )
    if not judged:
        return Judgement("INCONCLUSIVE", "No capability can be judged: see each one's reason.", None, found, None)
    statistics = _mean_statistics([pair for _, pair in judged])
    mean = _mean([record for record, _ in judged], statistics, settings)
    corrected = holm([*(float(record.p_equal or 0.0) for record, _ in judged), mean.p_equal])
    for (record, _), p in zip(judged, corrected, strict=False):
        record.p_holm = float(p)
        record.verdict = _call(record, level)
    mean.p_holm = float(corrected[-1])
    for record, pair in judged:
        record.why = _why(record, settings, level)
        if plan and record.verdict == "INCONCLUSIVE":
            record.items_to_decide = _items(pair.statistics(), settings, level, len(judged) + 1)
    judgement = _overall(found, mean, settings, level, unseen)
    if not plan or judgement.verdict != "INCONCLUSIVE":
        return judgement
    near = [pair for record, pair in zip(found, pairs, strict=True) if not pair.judged and _exposed(record, level)]
    number = _items_overall([pair for _, pair in judged], near, settings, level)
    more = (
        f"About {number} items per capability would decide."
        if number
        else "At these rates of flips no number of items is likely to decide."
    )
    return replace(judgement, items_to_decide=number, why=f"{judgement.why} {more}")


def _mean_statistics(pairs: Sequence[Pair]) -> PairedShares:
    """The mean over capabilities, as shares in strata of equal weight."""
    outcomes = [pair.outcomes for pair in pairs]
    strata = np.repeat(np.arange(len(pairs)), [len(before) for before, _ in outcomes])
    labels = None
    if any(pair.contexts for pair in pairs):
        labels = [
            f"{part} {label}"
            for part, pair in enumerate(pairs)
            for label in (pair.contexts or [f"item {place}" for place in range(len(pair.base.items))])
        ]
    before, after = (np.concatenate([both[side] for both in outcomes]) for side in (0, 1))
    return paired_shares(before, after, strata=strata, clusters=labels)


def _mean(records: Sequence[Capability], statistics: PairedShares, settings: Settings) -> Mean:
    return Mean(
        capabilities=len(records),
        n=statistics.n,
        base=float(np.mean([record.base for record in records])),
        tuned=float(np.mean([record.tuned for record in records])),
        difference=difference_of(statistics, 1 - settings.alpha),
        p_equal=statistics.p_equal(),
        p_holm=1.0,
        p_margin=statistics.p_not_above(-settings.margin),
        p_gain=statistics.p_not_below(settings.margin),
    )


def _call(record: Capability | Mean, alpha: float) -> Call:
    """The verdict on one difference that is judged."""
    if record.p_margin is not None and record.p_margin <= alpha:
        return "RETAINED"
    below = record.difference.high is not None and record.difference.high < 0
    return "REGRESSED" if below and record.p_holm is not None and record.p_holm <= alpha else "INCONCLUSIVE"


def points(share: float) -> str:
    """A share in points, with a sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _why(record: Capability, settings: Settings, alpha: float) -> str:
    loss, margin = points(record.difference.value), f"{100 * settings.margin:g} points"
    real = record.p_holm is not None and record.p_holm <= alpha
    if record.verdict == "REGRESSED":
        return f"{loss} points, and not by chance (p = {record.p_holm:.2g} after Holm)"
    if record.verdict == "RETAINED":
        small = "; the loss is real, and smaller than the margin" if real and record.difference.value < 0 else ""
        return f"a loss of {margin} or more is ruled out (p = {record.p_margin:.2g}){small}"
    return f"{loss} points may be chance (p = {record.p_holm:.2g} after Holm), and a loss of {margin} is not ruled out"


def _overall(
    found: list[Capability],
    mean: Mean,
    settings: Settings,
    alpha: float,
    unseen: Sequence[str],
) -> Judgement:
    change = f"the mean over {mean.capabilities} capabilities changed by {points(mean.difference.value)} points"
    lost = [record for record in found if record.verdict == "REGRESSED"]
    on_average = _call(mean, alpha)
    if lost or on_average == "REGRESSED":
        where = ", ".join(f"{record.name} ({points(record.difference.value)})" for record in lost)
        also = ", beyond chance too" if lost and on_average == "REGRESSED" else ""
        why = f"Lost beyond chance: {where or 'the mean, no capability by itself'}; {change}{also}."
        return Judgement("REGRESSED", why, None, found, mean)
    exposed = [record.name for record in found if _exposed(record, alpha)]
    exposed += unseen
    if on_average == "RETAINED" and not exposed:
        return Judgement("RETAINED", f"{_ruled_out(found, settings)}; {change}.", None, found, mean)
    reasons = (
        [f"{change}, and a loss of {100 * settings.margin:g} is not ruled out"] if on_average != "RETAINED" else []
    )
    if exposed:
        reasons.append(f"a loss of {100 * settings.worst:g} points or more is not ruled out on {', '.join(exposed)}")
    text = "; ".join(reasons)
    return Judgement("INCONCLUSIVE", f"{text[0].upper()}{text[1:]}.", None, found, mean)


def _exposed(record: Capability, alpha: float) -> bool:
    """Whether a capability may have lost ``worst``; of what margins are not of, False.

    One that is not judged passes by either of two tests, so each has half of the error rate.
    """
    if record.p_worst is None or record.p_chance is None:
        return False
    if record.verdict is not None:
        return record.p_worst > alpha
    return min(record.p_worst, record.p_chance) > alpha / 2


def _ruled_out(found: Sequence[Capability], settings: Settings) -> str:
    """What RETAINED says, and of which capabilities it does not."""
    near = [record.name for record in found if record.verdict is None and record.p_worst is not None]
    other = [
        f"{record.name} ({record.metric} {record.base:.4g} → {record.tuned:.4g})"
        for record in found
        if record.p_worst is None
    ]
    judged = len(found) - len(near) - len(other)
    text = (
        f"A loss of {100 * settings.margin:g} points or more on average, and of {100 * settings.worst:g} or more on "
        f"any of the {judged} judged, is ruled out"
    )
    if near:
        text += f"; near chance, with no such loss or not so much to lose: {', '.join(near)}"
    return text + (f"; not covered: {', '.join(other)}" if other else "")


def _rates(shares: PairedShares) -> tuple[float, float]:
    """Shares lost and gained with half a flip of each kind added: none seen is not none to be expected."""
    n = shares.effective
    return (shares.lost * n + 0.5) / (n + 1), (shares.gained * n + 0.5) / (n + 1)


def _to_retain(shares: PairedShares, margin: float, power: float, alpha: float) -> int | None:
    """Items at which a loss of the margin is ruled out, if the rates are what they seem; a gain is planned as none."""
    lost, gained = _rates(shares)
    if gained > lost:
        lost = gained = (lost + gained) / 2
    if gained - lost <= -margin:
        return None
    found = _equivalence_items(margin, lost, gained, power, alpha)
    return None if found is None else round(found * shares.n / shares.effective)


@lru_cache(maxsize=256)
def _equivalence_items(margin: float, lost: float, gained: float, power: float, alpha: float) -> int | None:
    """Of equal rates (none flipped, say) the number is found once: it takes twenty integrals."""
    try:
        return items_for_equivalence(margin, lost, gained, power, alpha).n
    except ValueError:  # more than anybody has
        return None


def _to_regress(shares: PairedShares, power: float, alpha: float, tests: int) -> int | None:
    """Items at which the loss is told from none, at Bonferroni's level (Holm's first)."""
    lost, gained = _rates(shares)
    if lost <= gained:
        return None
    try:
        found = items_for_flips(lost, gained, power, alpha / tests).n
    except ValueError:  # more than anybody has
        return None
    return round(found * shares.n / shares.effective)


def _items(shares: PairedShares, settings: Settings, alpha: float, tests: int) -> int | None:
    """The smaller of both numbers; more than there are."""
    numbers = (
        _to_retain(shares, settings.margin, settings.power, alpha),
        _to_regress(shares, settings.power, alpha, tests),
    )
    known = [number for number in numbers if number is not None]
    return max(min(known), shares.n + 1) if known else None


def _items_overall(pairs: Sequence[Pair], near: Sequence[Pair], settings: Settings, alpha: float) -> int | None:
    """Items per capability at which the audit would be decided, either way; ``near`` are in its way, not judged."""
    count = len(pairs)
    mean, single = _mean_statistics(pairs), [pair.statistics() for pair in pairs]
    average = _to_retain(mean, settings.margin, settings.power, alpha)
    retain = [None if average is None else -(-average // count)]
    retain += [_to_retain(shares, settings.worst, settings.power, alpha) for shares in single]
    retain += [_to_retain(pair.statistics(), settings.worst, settings.power, alpha / 2) for pair in near]
    regress = [_to_regress(shares, settings.power, alpha, count + 1) for shares in single]
    average = _to_regress(mean, settings.power, alpha, count + 1)
    regress.append(None if average is None else -(-average // count))
    ways = [max(n for n in retain if n is not None)] if None not in retain else []
    ways += [min(known)] if (known := [n for n in regress if n is not None]) else []
    return max(min(ways), max(shares.n for shares in single) + 1) if ways else None
