"""REGRESSED, RETAINED or INCONCLUSIVE: how tests of capabilities make a verdict, and what its error rates are.

With C judged capabilities (:attr:`~forgetting.audit.compare.Pair.judged`) and the mean of those that are shares of
right items, each counting the same:

- A capability (or the mean) has REGRESSED if its interval is below zero, its two-sided p-value after Holm's correction
  over the C + 1 tests is at most alpha, and its loss is not shown to be below the margin.
- It is RETAINED if its loss is shown to be below the margin: TOST's lower test at alpha. (The upper one, which a gain
  above the margin fails, is reported: a gain is no forgetting.) A loss that is real and shown to be smaller than what
  the user said not to matter is RETAINED.
- Else it is INCONCLUSIVE.

Of a perplexity the difference is the rise of its documents' bits, as a share of the base's: it has REGRESSED if that
interval is above zero (and the rest as above), and is RETAINED if a rise of ``rise`` or more is ruled out.

The audit has REGRESSED if a capability or the mean has. It is RETAINED if none has, the mean is RETAINED, of every
share a loss of ``worst`` or more is ruled out, and every perplexity is RETAINED. Else it is INCONCLUSIVE. A capability
that is not judged (both models are near chance) must pass too: its loss of ``worst`` is ruled out, or its base is shown
to have less than that above chance to lose, each at alpha / 2. What margins are not of (a share of which less is
better, such as a bias) is named as not covered.

Error rates: where nothing changed, REGRESSED at a rate of about alpha or less (Holm 1979; the choice of what is judged
is by the mean of both scores, which says nothing of their difference). Where the mean lost the margin or more, any
capability ``worst`` or more, or any perplexity rose by ``rise`` or more, RETAINED at a rate of about alpha, without a
correction: all of the tests must reject (Berger 1982, Technometrics 24:295). About: the score test's size swings around
alpha with the number of items (up to 6.4% at 5% with 30 to 1,200 items, a margin of 3 points and nothing gained), and
the tests of texts reach 6.6% with 30 texts whose differences are exponential, and about 10% with lognormal ones (σ of
the logarithm 1). A sequential audit gives each look a part of alpha, and the parts sum to alpha
(:mod:`forgetting.audit.looks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forgetting.analysis.paired_shares import PairedShares
from forgetting.analysis.significance import holm
from forgetting.audit.compare import LEAST_TEXTS, Pair, compare, difference_of, mean_shares
from forgetting.audit.plan import items_of_all, items_of_one
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
                else f"{record.metric} is no share of right items, and no perplexity of texts: margins are of these"
            )
    if not judged:
        return Judgement("INCONCLUSIVE", "No capability can be judged: see each one's reason.", None, found, None)
    mean = None
    if shares := [(record, pair) for record, pair in judged if pair.shares]:
        mean = _mean([record for record, _ in shares], mean_shares([pair for _, pair in shares]), settings)
    tested: list[Capability | Mean] = [*(record for record, _ in judged), *([mean] if mean else [])]
    for each, p in zip(tested, holm([float(each.p_equal or 0.0) for each in tested]), strict=True):
        each.p_holm = float(p)
    for record, pair in judged:
        record.verdict = _call(record, level)
        record.why = _why(record, settings, level)
        if plan and record.verdict == "INCONCLUSIVE":
            record.items_to_decide = items_of_one(pair, settings, level, len(tested))
    judgement = _overall(found, mean, settings, level, unseen)
    if not plan or judgement.verdict != "INCONCLUSIVE":
        return judgement
    near = [pair for record, pair in zip(found, pairs, strict=True) if not pair.judged and _exposed(record, level)]
    number = items_of_all([pair for _, pair in judged], near, settings, level)
    more = (
        f"About {number} items per capability would decide."
        if number
        else "At these rates of flips no number of items is likely to decide."
    )
    return replace(judgement, items_to_decide=number, why=f"{judgement.why} {more}")


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
    rise = record.rise if isinstance(record, Capability) else None
    if rise is not None:
        worse = rise.low is not None and rise.low > 0
    else:
        worse = record.difference.high is not None and record.difference.high < 0
    return "REGRESSED" if worse and record.p_holm is not None and record.p_holm <= alpha else "INCONCLUSIVE"


def points(share: float) -> str:
    """A share in points, with a sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _change(record: Capability) -> str:
    """In points; of a perplexity in per cent of the base's."""
    return f"{points(record.difference.value)} points" if record.rise is None else f"{points(record.rise.value)}%"


def _why(record: Capability, settings: Settings, alpha: float) -> str:
    margin = f"a loss of {100 * settings.margin:g} points"
    if record.rise is not None:
        margin = f"a rise of {100 * settings.rise:g}% of the base's bits"
        if (record.clusters or record.n) < LEAST_TEXTS:
            return f"{_change(record)}, of {record.clusters or record.n} texts; {LEAST_TEXTS} decide, or more"
    real = record.p_holm is not None and record.p_holm <= alpha
    if record.verdict == "REGRESSED":
        return f"{_change(record)}, and not by chance (p = {record.p_holm:.2g} after Holm)"
    if record.verdict == "RETAINED":
        worse = record.difference.value < 0 if record.rise is None else record.rise.value > 0
        small = "; the loss is real, and smaller than the margin" if real and worse else ""
        return f"{margin} or more is ruled out (p = {record.p_margin:.2g}){small}"
    return f"{_change(record)} may be chance (p = {record.p_holm:.2g} after Holm), and {margin} is not ruled out"


def _overall(
    found: list[Capability],
    mean: Mean | None,
    settings: Settings,
    alpha: float,
    unseen: Sequence[str],
) -> Judgement:
    change = ""
    if mean is not None:
        change = f"the mean over {mean.capabilities} capabilities changed by {points(mean.difference.value)} points"
    lost = [record for record in found if record.verdict == "REGRESSED"]
    on_average = None if mean is None else _call(mean, alpha)
    if lost or on_average == "REGRESSED":
        where = ", ".join(f"{record.name} ({_change(record).removesuffix(' points')})" for record in lost)
        also = ", beyond chance too" if lost and on_average == "REGRESSED" else ""
        why = f"Lost beyond chance: {where or 'the mean, no capability by itself'}{change and f'; {change}{also}'}."
        return Judgement("REGRESSED", why, None, found, mean)
    exposed = [record.name for record in found if record.rise is None and _exposed(record, alpha)]
    exposed += unseen
    risen = [record.name for record in found if record.rise is not None and _exposed(record, alpha)]
    if on_average in ("RETAINED", None) and not exposed and not risen:
        return Judgement(
            "RETAINED", f"{_ruled_out(found, mean, settings)}{change and f'; {change}'}.", None, found, mean
        )
    reasons = []
    if on_average == "INCONCLUSIVE":
        reasons.append(f"{change}, and a loss of {100 * settings.margin:g} is not ruled out")
    if exposed:
        reasons.append(f"a loss of {100 * settings.worst:g} points or more is not ruled out on {', '.join(exposed)}")
    if risen:
        reasons.append(f"a rise of {100 * settings.rise:g}% of the bits or more is not ruled out on {', '.join(risen)}")
    text = "; ".join(reasons)
    return Judgement("INCONCLUSIVE", f"{text[0].upper()}{text[1:]}.", None, found, mean)


def _exposed(record: Capability, alpha: float) -> bool:
    """Whether a capability may have lost ``worst``, or risen by ``rise``; of what margins are not of, False.

    One that is not judged passes by either of two tests, so each has half of the error rate.
    """
    if record.rise is not None:
        return record.verdict != "RETAINED"
    if record.p_worst is None or record.p_chance is None:
        return False
    if record.verdict is not None:
        return record.p_worst > alpha
    return min(record.p_worst, record.p_chance) > alpha / 2


def _ruled_out(found: Sequence[Capability], mean: Mean | None, settings: Settings) -> str:
    """What RETAINED says, and of which capabilities it does not."""
    near = [record.name for record in found if record.verdict is None and record.p_worst is not None]
    texts = [record.name for record in found if record.rise is not None]
    other = [
        f"{record.name} ({record.metric} {record.base:.4g} → {record.tuned:.4g})"
        for record in found
        if record.p_worst is None and record.rise is None
    ]
    said = []
    if mean is not None:
        said.append(
            f"a loss of {100 * settings.margin:g} points or more on average, and of {100 * settings.worst:g} or more "
            f"on any of the {mean.capabilities} judged, is ruled out"
        )
    if texts:
        said.append(f"a rise of {100 * settings.rise:g}% of the bits or more is ruled out on {', '.join(texts)}")
    if near:
        said.append(f"near chance, with no such loss or not so much to lose: {', '.join(near)}")
    if other:
        said.append(f"not covered: {', '.join(other)}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}"
