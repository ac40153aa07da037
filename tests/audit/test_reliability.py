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
    Kind,
    Reliability,
    agreement,
    jackknifed,
    load_reliability,
    save_reliability,
    told,
)
from forgetting.errors import UsageError


def test_rank_error_and_bias_by_hand() -> None:
    predicted, retrained = [0.1, 0.2, 0.4, 0.3, 0.6, 0.5], [0.0, 0.3, 0.3, 0.2, 0.5, 0.6]
    clusters = ["a", "a", "b", "b", "c", "c"]
    found = agreement(predicted, retrained, clusters)
    x, y = np.array(predicted), np.array(retrained)
    assert found.rank.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.error.value == pytest.approx(np.abs(x - y).mean())
    assert found.bias.value == pytest.approx((x - y).mean()) and found.points == 6
    without = [stats.spearmanr(x[keep], y[keep]).statistic for keep in ([2, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 3])]
    error = math.sqrt(2 / 3 * sum((r - np.mean(without)) ** 2 for r in without))
    half = stats.t.ppf(0.975, 2) * error
    assert found.rank.low == pytest.approx(max(-1, found.rank.value - half))
    assert found.rank.high == pytest.approx(min(1, found.rank.value + half))
    means = [float((x - y)[i : i + 2].mean()) for i in (0, 2, 4)]
    half = stats.t.ppf(0.975, 2) * np.std(means, ddof=1) / math.sqrt(3)
    assert (found.bias.high or 0) - (found.bias.low or 0) == pytest.approx(2 * half)


def test_the_jackknife_covers_a_correlation_within_clusters() -> None:
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a bivariate normal with correlation .6
    covered, runs = 0, 200
    for _ in range(runs):
        x = rng.standard_normal(60)
        y = 0.6 * x + 0.8 * rng.standard_normal(60)
        rank = jackknifed(x, y, np.repeat(list("abcdefghij"), 6))
        assert rank.low is not None and rank.high is not None
        covered += rank.low <= truth <= rank.high
    assert covered / runs > 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_too_few_tasks_have_no_interval() -> None:
    found = agreement([1, 2, 3], [1, 2, 4], ["a", "a", "b"])
    assert found.rank == Estimate(value=1.0)
    constant = agreement([1, 1, 1], [1, 2, 4], ["a", "b", "c"])
    assert constant.rank.value is None
    with pytest.raises(ValueError, match="pairs need equal ones"):
        agreement([1.0], [1.0, 2.0], ["a"])


def test_what_was_not_run_is_not_measured_and_what_was_is_told(tmp_path: Path) -> None:
    path = tmp_path / "reliability.json"
    assert load_reliability(path) is None and told("rank", None) == NOT_MEASURED
    agreed = agreement([0.1, 0.2, 0.4, 0.3], [0.0, 0.3, 0.3, 0.2], list("abcd"))
    made = Reliability(
        kinds={"rank": Kind(remedies=("lora:r=4",), retention=agreed, own=agreed)},
        order=Estimate(value=None),
        fine_tunes=4,
        tasks=4,
        provenance={"study": "audit_advice"},
    )
    save_reliability(made, path)
    assert load_reliability(path) == made
    assert "lora:r=4" in told("rank", made) and "4 fine-tunes of 4 tasks" in told("rank", made)
    assert told("fisher", made) == NOT_MEASURED
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"reliability\.json: cannot be read"):
        load_reliability(path)
