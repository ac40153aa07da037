"""Agreement of proxies with retraining: known correlations, covered truths, and a file that may not be there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from forgetting.audit.reliability import (
    NOT_MEASURED,
    Estimate,
    Reliability,
    Remedy,
    agreement,
    jackknifed,
    load_reliability,
    partial_rank,
    save_reliability,
    told,
)
from forgetting.errors import UsageError


def residual(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    ranks, others = stats.rankdata(values), stats.rankdata(given)
    line = stats.linregress(others, ranks)
    return np.asarray(ranks - line.intercept - line.slope * others)


def test_rank_error_and_bias_by_hand() -> None:
    rng = np.random.default_rng(1)
    tuned = rng.standard_normal(12)
    x, y = tuned + rng.standard_normal(12), tuned + rng.standard_normal(12)
    labels = np.repeat(list("abcd"), 3)
    found = agreement(list(x), list(y), list(tuned), list(labels))

    def rank(keep: np.ndarray) -> float:
        return float(np.corrcoef(*(residual(v[keep], tuned[keep]) for v in (x, y)))[0, 1])

    assert found.rank.value == pytest.approx(rank(np.ones(12, bool)))
    assert found.error.value == pytest.approx(np.abs(x - y).mean())
    assert found.bias.value == pytest.approx((x - y).mean()) and found.points == 12
    without = [rank(labels != label) for label in "abcd"]
    half = stats.t.ppf(0.975, 3) * math.sqrt(3 / 4 * sum((r - np.mean(without)) ** 2 for r in without))
    assert found.rank.low == pytest.approx(max(-1, found.rank.value - half))
    assert found.rank.high == pytest.approx(min(1, found.rank.value + half))
    means = [float((x - y)[i : i + 3].mean()) for i in (0, 3, 6, 9)]
    half = stats.t.ppf(0.975, 3) * np.std(means, ddof=1) / 2
    assert (found.bias.high or 0) - (found.bias.low or 0) == pytest.approx(2 * half)


def test_edits_that_tell_nothing_correlate_with_nothing() -> None:
    """Changes against the same fine-tune correlate by .5 and more where all three values are noise; this must not."""
    rng = np.random.default_rng(2)
    coupled, found = [], []
    for _ in range(200):
        edit, remedy, tuned = 0.3 * rng.standard_normal(30), 0.3 * rng.standard_normal(30), rng.standard_normal(30)
        coupled.append(stats.spearmanr(edit - tuned, remedy - tuned).statistic)
        found.append(partial_rank(edit, remedy, tuned))
        # As of replay: the prediction is a rise that is measured on the fine-tune, from its own loss.
        found.append(partial_rank(edit - tuned, remedy, -tuned))
    assert np.mean(coupled) > 0.8
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(200)
    assert math.isnan(partial_rank(tuned, remedy, tuned)), "an edit that is the fine-tune itself"


def test_the_jackknife_covers_a_correlation_within_clusters() -> None:
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a bivariate normal with correlation .6
    covered, runs = 0, 120
    for _ in range(runs):
        x = rng.standard_normal(60)
        y = 0.6 * x + 0.8 * rng.standard_normal(60)
        rank = jackknifed(x, y, rng.standard_normal(60), np.repeat(list("abcdefghij"), 6))
        assert rank.low is not None and rank.high is not None
        covered += rank.low <= truth <= rank.high
    assert covered / runs > 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_too_few_tasks_have_no_interval() -> None:
    found = agreement([1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4], ["a", "a", "b", "b"])
    assert found.rank.value is not None and found.rank.low is None
    constant = agreement([1, 1, 1, 1], [1, 2, 4, 3], [2, 1, 3, 4], list("abcd"))
    assert constant.rank.value is None
    with pytest.raises(ValueError, match="pairs need equal ones"):
        agreement([1.0], [1.0, 2.0], [1.0], ["a"])


def test_what_was_not_run_is_not_measured_and_what_was_is_told(tmp_path: Path) -> None:
    path = tmp_path / "reliability.json"
    assert load_reliability(path) is None and told("rank", None) == NOT_MEASURED
    agreed = agreement([0.1, 0.2, 0.4, 0.3], [0.0, 0.3, 0.3, 0.2], [0.2, 0.1, 0.3, 0.0], list("abcd"))
    made = Reliability(
        remedies={
            "lora:r=4": Remedy(kind="rank", retention=agreed, own=agreed),
            "freeze:first=1": Remedy(kind="revert", retention=agreed, own=agreed),
            "freeze:first=2": Remedy(kind="revert", retention=agreed, own=agreed),
        },
        order=Estimate(value=None),
        fine_tunes=4,
        tasks=4,
        provenance={"study": "audit_advice"},
    )
    save_reliability(made, path)
    assert load_reliability(path) == made
    assert "lora:r=4" in told("rank", made) and "4 fine-tunes of 4 tasks" in told("rank", made)
    assert "freeze:first=1: partial rank" in told("revert", made) and "freeze:first=2: " in told("revert", made)
    assert told("fisher", made) == NOT_MEASURED
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"reliability\.json: cannot be read"):
        load_reliability(path)
