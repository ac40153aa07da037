"""One capability, base against tuned: scores, paired difference, items lost and gained, and the tests of each.

| outcomes | interval and tests against a margin | test of no difference |
|---|---|---|
| right or wrong | score test of paired shares (Tango 1998) | McNemar's exact |
| right or wrong, items share a context | the same, with the effective number of items | the same |
| other scores in [0, 1] | the same | the same |
| perplexities (nats per word or byte of a document) | Fieller, as a share of the base's | paired t and Hall's |
| other | BCa bootstrap, or cluster-robust t; no margin | paired t |

The statistics are those of :mod:`forgetting.analysis`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.paired_shares import PairedShares, paired_shares
from forgetting.analysis.ratios import RelativeChange
from forgetting.analysis.significance import FlipTest, mcnemar, paired_t
from forgetting.analysis.stats import Interval, paired_difference
from forgetting.audit.items import Measured, clusters
from forgetting.audit.schema import Capability, Difference, Noise, Settings

SCORE_TEST = "score test (Tango 1998)"
TEXT_TEST = "paired t and Hall's (1992)"
PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""lm-eval's metrics of whole texts; a document's outcome is its nats per word or byte: more where less is known."""
LEAST_TEXTS = 30
"""Texts (contexts, where they share some) below which a perplexity is not decided: tests of so few, skewed, err."""


@dataclass(frozen=True)
class Pair:
    """One capability of both models.

    Attributes:
        base, tuned: Of the same items, in the same order.
        contexts: A label per item, or ``None``.
    """

    base: Measured
    tuned: Measured
    contexts: list[str] | None

    @property
    def outcomes(self) -> tuple[np.ndarray, np.ndarray]:
        """Base and tuned, shape (n,) each."""
        return self.base.outcomes, self.tuned.outcomes

    @property
    def bounded(self) -> bool:
        """Whether all outcomes are scores in [0, 1]."""
        return not self.perplexity and all(bool(((x >= 0) & (x <= 1)).all()) for x in self.outcomes)

    @property
    def shares(self) -> bool:
        """Whether all outcomes are scores in [0, 1] and higher is better: what a margin is of."""
        return self.base.higher_is_better and self.bounded

    @property
    def right_or_wrong(self) -> bool:
        """Whether all outcomes are 0 or 1."""
        return all(bool(np.isin(x, (0.0, 1.0)).all()) for x in self.outcomes)

    @property
    def perplexity(self) -> bool:
        """Whether outcomes are nats of texts."""
        return self.base.metric in PERPLEXITIES and self.base.score > 0

    @property
    def judged(self) -> bool:
        """Whether it has a verdict: a perplexity, and shares that are there to be lost.

        That is: the mean of both scores is above chance by two standard errors (of guessing), or either by five.
        A capability that neither has can neither be lost nor kept. The mean of both, as where nothing changed it says
        nothing of their difference: a choice by the base's luck would make what is left look lost, and one by the
        better of the two would pick large differences, whose Holm correction would then be over too few. Five
        errors are beyond luck in thousands of capabilities: what falls from there to below chance is judged.
        """
        if self.perplexity:
            return True
        chance, n = self.base.chance, len(self.base.items)
        error, scores = math.sqrt(chance * (1 - chance) / n), (self.base.score, self.tuned.score)
        return self.shares and (sum(scores) / 2 > chance + 2 * error / math.sqrt(2) or max(scores) > chance + 5 * error)

    def p_chance(self, worst: float) -> float:
        """p-value of the hypothesis that the base is ``worst`` or more above chance: what is not there is not lost.

        The score test of one share, with the effective number of items where they share contexts.
        """
        base = self.base.outcomes
        gained = paired_shares(np.zeros(base.size), base, clusters=self.contexts)
        return gained.p_not_below(self.base.chance + worst)

    def statistics(self) -> PairedShares:
        """The difference of shares."""
        return paired_shares(*self.outcomes, clusters=self.contexts)

    def risen(self) -> RelativeChange:
        """How much a perplexity's nats rose."""
        return RelativeChange(*self.outcomes, self.contexts)


def pair(base: Measured, tuned: Measured, cluster: str | None = None) -> Pair:
    """Pair a capability of two models whose items are the same; ``cluster`` is the field that names a context."""
    return Pair(base, tuned, clusters(base.items, cluster))


def compare(pair: Pair, settings: Settings, noise: Noise | None = None) -> Capability:
    """Return what is known of a capability before a verdict: no p-value is corrected yet.

    Args:
        pair: Both models.
        settings: Its margins, and the interval's level.
        noise: Of the A/A run.
    """
    before, after = pair.outcomes
    flips = mcnemar(before, after) if pair.right_or_wrong else None
    base, tuned = pair.base.score, pair.tuned.score
    record = Capability(
        name=pair.base.name,
        metric=pair.base.metric,
        version=pair.base.version,
        chance=pair.base.chance,
        n=len(pair.base.items),
        clusters=None if pair.contexts is None else len(set(pair.contexts)),
        base=base,
        tuned=tuned,
        retention=_retention(pair),
        difference=difference(pair, 1 - settings.alpha),
        lost=flips.lost if flips else None,
        gained=flips.gained if flips else None,
        p_mcnemar=flips.p_value if flips else None,
        p_equal=None,
        test=SCORE_TEST,
        noise=noise,
    )
    if pair.perplexity:
        risen = pair.risen()
        record.test, enough = TEXT_TEST, (record.clusters or record.n) >= LEAST_TEXTS
        record.p_equal = risen.p_equal() if enough else 1.0
        record.p_margin = risen.p_not_below(settings.rise) if enough else 1.0
        record.p_gain = risen.p_not_above(-settings.rise) if enough else 1.0
        record.rise = as_difference(risen.interval(1 - settings.alpha))
        return record
    if not pair.bounded:
        test = paired_t(before, after, "items", pair.contexts)
        record.test, record.p_equal = "paired t", None if math.isnan(test.p_value) else test.p_value
        return record
    shares = pair.statistics()
    if flips is not None and pair.contexts is None:
        record.test, record.p_equal = "McNemar, exact", flips.p_value
    else:
        record.p_equal = shares.p_equal()
    if pair.shares:
        record.p_margin = shares.p_not_above(-settings.margin)
        record.p_gain = shares.p_not_below(settings.margin)
        record.p_worst = shares.p_not_above(-settings.worst)
        record.p_chance = pair.p_chance(settings.worst)
    return record


def difference(pair: Pair, level: float) -> Difference:
    """The paired difference tuned − base with its interval over items."""
    if pair.bounded:
        return difference_of(pair.statistics(), level)
    if pair.perplexity:  # Student's t, as the test: each text is a context of its own where none is shared
        labels = pair.contexts or [str(place) for place in range(len(pair.base.items))]
        return difference_of_means(*pair.outcomes, level, labels)
    return difference_of_means(*pair.outcomes, level, pair.contexts)


def difference_of_means(
    base: np.ndarray, tuned: np.ndarray, level: float, contexts: list[str] | None = None
) -> Difference:
    """The difference of scores without bounds with its interval."""
    return as_difference(paired_difference(base, tuned, "items", level, contexts))


def as_difference(interval: Interval) -> Difference:
    """An interval as the verdict holds it."""
    undefined = math.isnan(interval.low)
    return Difference(
        value=interval.mean,
        low=None if undefined else interval.low,
        high=None if undefined else interval.high,
        method=interval.method,
    )


def difference_of(shares: PairedShares, level: float) -> Difference:
    """The difference of shares with its interval."""
    low, high = shares.interval(level)
    return Difference(value=shares.difference, low=low, high=high, method=SCORE_TEST, effective=shares.effective)


def mean_shares(pairs: Sequence[Pair]) -> PairedShares:
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


def _retention(pair: Pair) -> float | None:
    from forgetting import metrics

    before, after = pair.outcomes
    if not pair.shares or before.size < 2:
        return None
    error = before.std(ddof=1) / math.sqrt(before.size)
    value = float(metrics.retention([[before.mean()], [after.mean()]], [pair.base.chance], [error])[0])
    return None if math.isnan(value) else value


def noise_floor(base: Measured, again: Measured, tuned: Measured) -> Noise | None:
    """Compare the base model's two runs: what flips between them is arithmetic, not forgetting.

    Args:
        base: The run that is compared with the fine-tune.
        again: The same model at another batch size, on the same items or fewer.
        tuned: The fine-tune.

    Returns:
        ``None`` where items are not right or wrong.
    """
    keys = {item.key for item in again.items}
    sides = [[item for item in side.items if item.key in keys] for side in (base, again, tuned)]
    first, second, third = (np.array([item.outcome for item in side]) for side in sides)
    if not np.isin(np.concatenate([first, second, third]), (0.0, 1.0)).all():
        return None
    within: FlipTest = mcnemar(first, second)
    beyond = mcnemar(first != second, first != third)
    changes = [
        abs(a - b)
        for one, two in zip(sides[0], sides[1], strict=True)
        for a, b in zip(one.log_probs, two.log_probs, strict=False)
        if math.isfinite(a) and math.isfinite(b)
    ]
    return Noise(
        lost=within.lost,
        gained=within.gained,
        n=within.n,
        largest=max(changes, default=None),
        p_beyond=beyond.p_value if beyond.gained > beyond.lost else 1.0,
    )
