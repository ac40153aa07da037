"""How far the audit's advice can be trusted: each edit against retraining with the remedy that it stands for.

The numbers are the study ``audit_advice``'s (``experiments/audit_advice.py``), on the embedded world's fine-tunes, and
are kept beside this module with where they came from. Until it has been run there are none, and :func:`told` says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from forgetting.errors import UsageError

PATH = Path(__file__).with_name("reliability.json")
Source = Literal["interpolation", "revert", "rank", "fisher", "replay"]
NOT_MEASURED = "not measured"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class Estimate(_Part):
    """A statistic over fine-tunes, with its 95% interval; ``None`` where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Agreement(_Part):
    """Predicted against retrained values, over fine-tunes.

    Attributes:
        rank: Partial rank correlation, given the fine-tune's own value: does the edit tell more of what the remedy
            gives than the fine-tune itself does? (Changes against it share its noise, and correlate without that.)
        error: Mean |predicted − retrained|.
        bias: Mean predicted − retrained; above 0 the edit promises too much.
        points: Fine-tunes.
    """

    rank: Estimate
    error: Estimate
    bias: Estimate
    points: int


class Remedy(_Part):
    """One remedy and the edit that stands for it.

    Attributes:
        kind: Of the edit.
        retention: Of retention, as a share of the base's skill. Of replay, of minus the loss on general text, nats per
            token.
        own: Of the own task's score, nats per token of its answers; ``None`` of replay, which predicts none.
    """

    kind: Source
    retention: Agreement
    own: Agreement | None


class Reliability(_Part):
    """All remedies, and where the numbers came from.

    Attributes:
        remedies: By the mitigation that was retrained with; of some kinds of edit there are several.
        order: Mean over fine-tunes of the rank correlation between the remedies' retention as predicted and as
            retrained: does the table put the remedies in the right order?
        fine_tunes, tasks: Number of fine-tunes, and of their tasks, which are what intervals are clustered by.
        provenance: Study, scale, command, model and versions.
    """

    remedies: dict[str, Remedy]
    order: Estimate
    fine_tunes: int
    tasks: int
    provenance: dict[str, Any]

    def told(self, kind: Source) -> str:
        """One sentence for beside the advice."""
        found = [self._told(name, one.retention) for name, one in self.remedies.items() if one.kind == kind]
        if not found:
            return NOT_MEASURED
        unit = "nats per token" if kind == "replay" else "of the base's skill"
        return (
            f"against retraining, {'; '.join(found)} ({unit}; the correlation is what the edit tells beyond the "
            f"fine-tune's own value), over {self.fine_tunes} fine-tunes of {self.tasks} tasks of the embedded world"
        )

    @staticmethod
    def _told(name: str, found: Agreement) -> str:
        rank, bias, error = (_shown(each) for each in (found.rank, found.bias, found.error))
        return f"{name}: partial rank correlation {rank}, bias {bias}, mean error {error}"


def told(kind: Source, reliability: Reliability | None) -> str:
    """What to print beside advice of a kind; :data:`NOT_MEASURED` where there is nothing."""
    return NOT_MEASURED if reliability is None else reliability.told(kind)


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    limits = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:.2g} to {estimate.high:.2g})"
    return f"{estimate.value:.2g}{limits}"


def load_reliability(path: Path = PATH) -> Reliability | None:
    """Read the measured reliability; ``None`` where the study has not been run.

    Raises:
        UsageError: if the file is there and cannot be read.
    """
    if not path.exists():
        return None
    try:
        return Reliability.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); write it again by the study"
        ) from None


def save_reliability(reliability: Reliability, path: Path = PATH) -> None:
    """Write it, whole or not at all.

    Raises:
        UsageError: if it cannot be written.
    """
    from forgetting.results import write_atomically

    content = json.dumps(reliability.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, content.encode())


def agreement(
    predicted: Sequence[float], retrained: Sequence[float], tuned: Sequence[float], clusters: Sequence[str]
) -> Agreement:
    """Compare predicted with retrained values.

    Error and bias have cluster-robust t intervals. The partial rank correlation has that of the delete-one-cluster
    jackknife, cut to [−1, 1]: with θ_g the correlation without cluster g of G, error² = (G−1)/G Σ (θ_g − mean)², and
    Student's t with G − 1 degrees of freedom (Efron & Tibshirani 1993, ch. 11).

    Args:
        predicted: n values (not changes: two changes against the same fine-tune share its noise).
        retrained: The same n, in the same order.
        tuned: Those of the fine-tunes.
        clusters: What belongs together: the task of each.

    Raises:
        ValueError: if the numbers differ, or there is none.
    """
    from forgetting.analysis.samples import differences
    from forgetting.analysis.stats import item_interval

    gaps = -differences(predicted, retrained)
    differences(predicted, tuned)  # as many
    labels = np.asarray(clusters)
    bias, error = (item_interval(values, clusters=labels) for values in (gaps, np.abs(gaps)))
    x, y, given = (np.asarray(values, float) for values in (predicted, retrained, tuned))
    return Agreement(
        rank=jackknifed(x, y, given, labels),
        error=estimate(error.mean, error.low, error.high),
        bias=estimate(bias.mean, bias.low, bias.high),
        points=gaps.size,
    )


def partial_rank(x: NDArray[np.float64], y: NDArray[np.float64], given: NDArray[np.float64]) -> float:
    """Spearman's correlation of x and y with ``given`` held: (r_xy − r_xz r_yz) / √((1 − r_xz²)(1 − r_yz²)).

    Kendall & Stuart's partial correlation of the ranks. NaN for fewer than four values, where one does not vary, and
    where the ranks of x or of y are those of ``given``: nothing is left to correlate.
    """
    from scipy import stats

    if x.size < 4 or any(np.ptp(values) == 0 for values in (x, y, given)):
        return float("nan")
    xy, xz, yz = (float(stats.spearmanr(*pair).statistic) for pair in ((x, y), (x, given), (y, given)))
    left = (1 - xz**2) * (1 - yz**2)
    return float("nan") if left < 1e-12 else (xy - xz * yz) / float(np.sqrt(left))


def jackknifed(
    x: NDArray[np.float64], y: NDArray[np.float64], given: NDArray[np.float64], labels: NDArray[Any]
) -> Estimate:
    """:func:`partial_rank` with its cluster-jackknife interval; see :func:`agreement`."""
    from scipy import stats

    whole = partial_rank(x, y, given)
    groups = np.unique(labels)
    without = np.array([partial_rank(*(values[labels != group] for values in (x, y, given))) for group in groups])
    if groups.size < 3 or np.isnan(without).any():
        return estimate(whole)
    error = float(np.sqrt((groups.size - 1) / groups.size * ((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, groups.size - 1)) * error
    return estimate(whole, max(-1.0, whole - half), min(1.0, whole + half))


def estimate(value: float, low: float = float("nan"), high: float = float("nan")) -> Estimate:
    """An estimate whose NaNs are ``None``."""
    known = [None if np.isnan(each) else float(each) for each in (value, low, high)]
    return Estimate(value=known[0], low=known[1], high=known[2])
