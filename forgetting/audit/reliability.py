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
    """Predicted against retrained changes, over fine-tunes.

    Attributes:
        rank: Spearman's correlation: does the edit tell for which fine-tunes the remedy does much?
        error: Mean |predicted − retrained|.
        bias: Mean predicted − retrained; above 0 the edit promises too much.
        points: Fine-tunes × remedies of this kind.
    """

    rank: Estimate
    error: Estimate
    bias: Estimate
    points: int


class Kind(_Part):
    """One kind of edit.

    Attributes:
        remedies: What was retrained with.
        retention: Of the gain in retention over the tuned model, as a share of the base's skill. Of replay, of the fall
            of the loss on general text, nats per token.
        own: Of the change of the own task's score, nats per token of its answers; ``None`` of replay, which predicts
            none.
    """

    remedies: tuple[str, ...]
    retention: Agreement
    own: Agreement | None


class Reliability(_Part):
    """All kinds, and where the numbers came from.

    Attributes:
        kinds: By kind of edit.
        order: Mean over fine-tunes of the rank correlation between the remedies' gains as predicted and as retrained:
            does the table put the remedies in the right order?
        fine_tunes, tasks: Number of fine-tunes, and of their tasks, which are what intervals are clustered by.
        provenance: Study, scale, command, model and versions.
    """

    kinds: dict[Source, Kind]
    order: Estimate
    fine_tunes: int
    tasks: int
    provenance: dict[str, Any]

    def told(self, kind: Source) -> str:
        """One sentence for beside the advice."""
        if kind not in self.kinds:
            return NOT_MEASURED
        found = self.kinds[kind].retention
        rank, bias, error = (_shown(each) for each in (found.rank, found.bias, found.error))
        unit = "nats per token" if kind == "replay" else "of the base's skill"
        return (
            f"against retraining ({'; '.join(self.kinds[kind].remedies)}): rank correlation {rank}, bias {bias} and "
            f"mean error {error} {unit}, over {self.fine_tunes} fine-tunes of {self.tasks} tasks of the embedded world"
        )


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


def agreement(predicted: Sequence[float], retrained: Sequence[float], clusters: Sequence[str]) -> Agreement:
    """Compare predicted with retrained changes.

    Error and bias have cluster-robust t intervals. Spearman's correlation has that of the delete-one-cluster jackknife,
    cut to [−1, 1]: with θ_g the correlation without cluster g of G, error² = (G−1)/G Σ (θ_g − mean)², and Student's t
    with G − 1 degrees of freedom (Efron & Tibshirani 1993, ch. 11).

    Args:
        predicted: n changes.
        retrained: The same n, in the same order.
        clusters: What belongs together: the task of each.

    Raises:
        ValueError: if the numbers differ, or there is none.
    """
    from forgetting.analysis.samples import differences
    from forgetting.analysis.stats import item_interval

    gaps = -differences(predicted, retrained)
    labels = np.asarray(clusters)
    bias, error = (item_interval(values, clusters=labels) for values in (gaps, np.abs(gaps)))
    return Agreement(
        rank=jackknifed(np.asarray(predicted, float), np.asarray(retrained, float), labels),
        error=estimate(error.mean, error.low, error.high),
        bias=estimate(bias.mean, bias.low, bias.high),
        points=gaps.size,
    )


def jackknifed(x: NDArray[np.float64], y: NDArray[np.float64], labels: NDArray[Any]) -> Estimate:
    """Spearman's correlation with its cluster-jackknife interval; see :func:`agreement`."""
    from scipy import stats

    def rank(rows: NDArray[np.bool_]) -> float:
        if rows.sum() < 3 or np.ptp(x[rows]) == 0 or np.ptp(y[rows]) == 0:
            return float("nan")
        return float(stats.spearmanr(x[rows], y[rows]).statistic)

    whole = rank(np.ones(x.size, bool))
    groups = np.unique(labels)
    without = np.array([rank(labels != group) for group in groups])
    if groups.size < 3 or np.isnan(without).any():
        return estimate(whole)
    error = float(np.sqrt((groups.size - 1) / groups.size * ((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, groups.size - 1)) * error
    return estimate(whole, max(-1.0, whole - half), min(1.0, whole + half))


def estimate(value: float, low: float = float("nan"), high: float = float("nan")) -> Estimate:
    """An estimate whose NaNs are ``None``."""
    known = [None if np.isnan(each) else float(each) for each in (value, low, high)]
    return Estimate(value=known[0], low=known[1], high=known[2])
