"""Retention's interval: the metric's own value, the error of a bootstrap, and coverage in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from forgetting import metrics
from forgetting.audit.retained import gained, retained


def drawn(rng: np.random.Generator, n: int = 200) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Two models on two capabilities whose items are correlated: right 80% and 90% before, 60% and 75% after."""
    base, model = {}, {}
    for name, before, after in (("a", 0.8, 0.6), ("b", 0.9, 0.75)):
        ease = rng.random(n)
        base[name] = (ease < before).astype(float).tolist()
        model[name] = (np.where(rng.random(n) < 0.5, ease, rng.random(n)) < after).astype(float).tolist()
    return base, model


CHANCE = {"a": 0.25, "b": 0.5}
TRUE = ((0.6 - 0.25) / (0.8 - 0.25) + (0.75 - 0.5) / (0.9 - 0.5)) / 2


def test_the_mean_is_the_metric_and_the_error_is_the_bootstraps() -> None:
    rng = np.random.default_rng(1)
    base, model = drawn(rng)
    found = retained(base, model, CHANCE)
    G = [[np.mean(each[name]) for name in CHANCE] for each in (base, model)]
    assert found.mean == pytest.approx(metrics.retention(G, list(CHANCE.values()), [0, 0]).mean(), rel=1e-12)
    copies = []
    for _ in range(4000):
        ratios = []
        for name, chance in CHANCE.items():
            rows = rng.integers(200, size=200)
            ratios.append((np.array(model[name])[rows].mean() - chance) / (np.array(base[name])[rows].mean() - chance))
        copies.append(np.mean(ratios))
    half = (found.high - found.low) / 2
    assert half / stats.norm.ppf(0.975) == pytest.approx(np.std(copies), rel=0.1)


def test_the_interval_covers_what_is_true() -> None:
    rng = np.random.default_rng(2)
    draws = [retained(*drawn(rng), CHANCE) for _ in range(600)]
    covered = sum(found.low <= TRUE <= found.high for found in draws)
    # 95% of 600 within four binomial standard errors, and a per cent for the linearisation
    assert abs(covered / 600 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 600) + 0.01


def test_a_gain_is_paired_and_a_difference_of_retentions() -> None:
    base, before = drawn(np.random.default_rng(3))
    after = {name: [1.0] * 20 + items[20:] for name, items in before.items()}
    found = gained(base, before, after, CHANCE)
    apart = [retained(base, each, CHANCE) for each in (before, after)]
    assert found.mean == pytest.approx(apart[1].mean - apart[0].mean, rel=1e-12)
    assert found.high - found.low < (apart[1].high - apart[1].low), "what both have in common cancels"
    same = gained(base, before, before, CHANCE)
    assert same.mean == 0 and math.isnan(same.low) and math.isnan(same.high)


def test_items_that_share_a_context_count_once() -> None:
    base, model = drawn(np.random.default_rng(4))
    other = {name: [1.0] * 10 + items[10:] for name, items in model.items()}
    labels: dict[str, list[str] | None] = {name: [str(k) for k in range(200)] * 5 for name in CHANCE}
    five = [{name: items * 5 for name, items in each.items()} for each in (base, model, other)]
    pairs = (
        (retained(base, model, CHANCE), retained(*five[:2], CHANCE, contexts=labels)),
        (gained(base, model, other, CHANCE), gained(*five, CHANCE, contexts=labels)),
    )
    for once, repeated in pairs:
        assert (repeated.mean, repeated.low, repeated.high) == pytest.approx((once.mean, once.low, once.high))
    assert retained(*five[:2], CHANCE).low > pairs[0][0].low, "five times the items, if none shared a context"


def test_what_was_never_there_does_not_count() -> None:
    base = {"a": [1.0, 1.0, 1.0, 0.0] * 20, "b": [1.0, 0.0] * 40}
    found = retained(base, {"a": [0.0, 1.0] * 40, "b": [1.0] * 80}, CHANCE)
    assert (found.defined, found.undefined, found.items) == (1, 1, 80)
    assert found.mean == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    nothing = retained({"b": base["b"]}, {"b": base["b"]}, CHANCE)
    assert nothing.defined == 0 and math.isnan(nothing.mean)


@pytest.mark.parametrize("other", [{"a": [1.0]}, {"b": [1.0, 0.0]}])
def test_other_items_are_refused(other: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="items: two models have other capabilities"):
        retained({"a": [1.0, 0.0]}, other, CHANCE)
    with pytest.raises(ValueError, match="capability 'a' has a value that is not finite"):
        retained({"a": [1.0, 0.0]}, {"a": [1.0, math.nan]}, CHANCE)
