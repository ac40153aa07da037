"""How many items would decide what is not decided, at the rates of flips, or the spread of texts, that were seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from forgetting.analysis.paired_shares import PairedShares
from forgetting.analysis.power import (
    items_for_equivalence,
    items_for_flips,
    seeds_for_difference,
    seeds_for_equivalence,
)
from forgetting.analysis.ratios import RelativeChange
from forgetting.audit.compare import LEAST_TEXTS, Pair, mean_shares
from forgetting.audit.schema import Settings


def items_of_one(pair: Pair, settings: Settings, alpha: float, tests: int) -> int | None:
    """Items at which one capability's verdict would be decided, either way; more than there are.

    Args:
        pair: Both models.
        settings: Margins and power.
        alpha: Error rate.
        tests: Of Holm's family.

    Returns:
        ``None`` where no number is likely to decide.
    """
    if pair.perplexity:
        numbers = _texts_to_retain(pair, settings, alpha), _texts_to_regress(pair, settings, alpha / tests)
    else:
        shares = pair.statistics()
        numbers = (
            _to_retain(shares, settings.margin, settings.power, alpha),
            _to_regress(shares, settings.power, alpha, tests),
        )
    known = [number for number in numbers if number is not None]
    return max(min(known), len(pair.base.items) + 1) if known else None


def items_of_all(pairs: Sequence[Pair], near: Sequence[Pair], settings: Settings, alpha: float) -> int | None:
    """Items per capability at which the audit would be decided, either way.

    Args:
        pairs: Those that are judged.
        near: Those that are not, and are in its way.
        settings: Margins and power.
        alpha: Error rate.
    """
    shares, texts = ([pair for pair in pairs if pair.perplexity is kind] for kind in (False, True))
    tests = len(pairs) + bool(shares)
    single = [pair.statistics() for pair in shares]
    retain = [_to_retain(each, settings.worst, settings.power, alpha) for each in single]
    retain += [_to_retain(pair.statistics(), settings.worst, settings.power, alpha / 2) for pair in near]
    retain += [_texts_to_retain(pair, settings, alpha) for pair in texts]
    regress = [_to_regress(each, settings.power, alpha, tests) for each in single]
    regress += [_texts_to_regress(pair, settings, alpha / tests) for pair in texts]
    if shares:
        mean = mean_shares(shares)
        for ways, whole in (
            (retain, _to_retain(mean, settings.margin, settings.power, alpha)),
            (regress, _to_regress(mean, settings.power, alpha, tests)),
        ):
            ways.append(None if whole is None else -(-whole // len(shares)))
    ends = [max(n for n in retain if n is not None)] if None not in retain else []
    ends += [min(known)] if (known := [n for n in regress if n is not None]) else []
    return max(min(ends), max(len(pair.base.items) for pair in pairs) + 1) if ends else None


def _texts_to_retain(pair: Pair, settings: Settings, alpha: float) -> int | None:
    """Documents at which a rise of the margin is ruled out, if it is what it seems; a fall is planned as none."""
    risen = pair.risen()
    rise, margin, spread = _seen(risen, settings.rise)
    if not rise < margin or not spread > 0:
        return None
    try:
        return _texts(pair, seeds_for_equivalence(margin, spread, rise, settings.power, alpha).n)
    except ValueError:  # more than anybody has
        return None


def _texts_to_regress(pair: Pair, settings: Settings, alpha: float) -> int | None:
    rise, _, spread = _seen(pair.risen(), 0.0)
    if not rise > 0 or not spread > 0:
        return None
    try:
        return _texts(pair, seeds_for_difference(rise, spread, settings.power, alpha).n)
    except ValueError:
        return None


def _texts(pair: Pair, number: int) -> int:
    """At least as many as have LEAST_TEXTS contexts."""
    n = len(pair.base.items)
    return max(number, -(-LEAST_TEXTS * n // (n if pair.contexts is None else len(set(pair.contexts)))))


def _seen(risen: RelativeChange, margin: float) -> tuple[float, float, float]:
    """The rise (none where it fell) and the margin in nats, and the spread of a document's distance from it."""
    base = float(risen.before.mean())
    return max(risen.change, 0.0) * base, margin * base, risen.spread(margin)


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
