"""From records to one row per run, and from those to one row per mitigation: nothing here is stored anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from forgetting import metrics
from forgetting.analysis.stats import Interval, paired_difference, seed_interval
from forgetting.errors import UsageError
from forgetting.results import Items, ResultStore, RunRecord

TASK_METRICS = {
    "ACC": metrics.average_accuracy,
    "LA": metrics.learning_accuracy,
    "BWT": metrics.backward_transfer,
    "FWT": metrics.forward_transfer,
    "forgetting": metrics.forgetting_measure,
}
"""Columns of the summary that are functions of R."""

FLIPS = ("lost", "gained", "lost_adjusted", "gained_adjusted")
LABELS = ("mitigation", "view", "seed", "status", "reason", "run_id", "R_unit", "G_unit")
COUNTS = ("tasks_done", "retention_defined", "retention_undefined")
COSTS = (
    "steps",
    "tokens",
    "examples",
    "replay_share",
    "truncated",
    "flops",
    "seconds",
    "evaluation_seconds",
    "peak_memory_bytes",
    "parameters",
    "trainable_parameters",
    "stored_floats",
)

UNITS = {
    "share": "points",
    "nats": "−ln(perplexity), nats per token",
    "mixed": "mean of scores in [0, 1] and of −ln(perplexity)",
    "raw": "mean of scores in different units",
}
"""What a mean of scores is measured in: shares in [0, 1] are shown × 100, as points, the others as they are."""

BASELINE = "naive"
SINGLE_TASK = "single_task"
"""The reference of intransigence."""


def summarise(store: ResultStore) -> pd.DataFrame:
    """One row per run of the study's grid, in its order, and one more per view of a run (``adapter_off``).

    Columns: ``mitigation``; ``view`` ("" for the run as it stands); ``seed``; ``status`` (``finished``,
    ``failed``, ``running``, or ``not begun``); ``reason``; ``run_id``; the units of R and G, of ``UNITS``;
    ACC, LA, BWT, FWT, ``forgetting`` in R's unit, and ``intransigence`` where the study has a run of ``single_task``
    (NaN at seeds that it did not finish); ``retention``, its numbers of capabilities defined and
    undefined; ``delta_G`` in G's unit; item flips as shares, means over the capabilities with right-or-wrong
    items; per text ``delta_CE:<text>``, ``KL_forward:<text>``, ``KL_reverse:<text>`` after the last task, nats per
    token, and ``TV:<text>``; ``fisher_distance`` where it was measured; and the cost. Metrics of a run that is not
    finished are NaN; its cost is what it has taken so far.

    Raises:
        UsageError: if a record cannot be read, or runs of one study were scored on different tasks or
            capabilities.
    """
    rows: list[dict[str, Any]] = []
    records = {record.run_id: record for record in store.records()}
    check_alike(list(records.values()))
    single = {
        record.config.seed: np.diagonal(record.R, offset=-1)
        for record in records.values()
        if record.config.mitigation == SINGLE_TASK and record.status == "finished"
    }
    for run in store.config().runs():
        labels = {"mitigation": run.mitigation, "view": "", "seed": run.seed, "run_id": run.run_id}
        record = records.get(run.run_id)
        if record is None:
            rows.append({**labels, "status": "not begun", "reason": ""})
            continue
        labels |= {"status": record.status, "reason": record.reason or ""}
        if record.status != "finished":
            rows.append({**labels, **_cost(record)})
            continue
        items = store.load_items(record.run_id)
        stderr = base_stderr(record, items)
        for view in ("", *views(record)):
            R, G = matrices(record, view)
            row = {**labels, "view": view, **_scores(record, R, G, stderr), **_drift(record, view)}
            if run.seed in single:
                row["intransigence"] = metrics.intransigence(R, single[run.seed])
            rows.append(row if view else {**row, **_flips(record, items), **_cost(record)})
    frame = pd.DataFrame(rows)
    flipped = [f"flips_{name}" for name in FLIPS]
    against_single = ["intransigence"] if single else []
    always = [*LABELS, *TASK_METRICS, *against_single, "retention", "delta_G", *flipped, *COUNTS, *COSTS]
    texts = [column for column in frame.columns if column not in always]
    return frame.reindex(columns=[*always, *texts])


def check_alike(records: Sequence[RunRecord]) -> None:
    """Raise UsageError unless all records have the columns of the first: matrices of others cannot be averaged."""
    for record in records:
        for kind in ("tasks", "capabilities"):
            ours = [column.name for column in getattr(records[0], kind)]
            theirs = [column.name for column in getattr(record, kind)]
            if theirs != ours:
                raise UsageError(
                    f"run {record.run_id!r}: has the {kind} {theirs}, while {records[0].run_id!r} has {ours}; "
                    "delete one of them to run it again"
                )


def views(record: RunRecord) -> list[str]:
    """Names of the states that every row after the base's was also scored in."""
    if len(record.rows) < 2:
        return []
    return sorted(set.intersection(*(set(row.views) for row in record.rows[1:])), key=_view_order)


def curve_point(view: str) -> tuple[str, float] | None:
    """Split the name of a view that is one strength of a method among others, ``alpha=0.25``; ``None`` for another."""
    key, _, value = view.partition("=")
    try:
        return key, float(value)
    except ValueError:
        return None


def _view_order(view: str) -> tuple[str, float]:
    return curve_point(view) or (view, 0.0)


def matrices(record: RunRecord, view: str = "") -> tuple[list[list[float]], list[list[float]]]:
    """R and G of a run, or of one of its views, whose row 0 is the base model's either way."""
    if not view:
        return record.R, record.G
    shown = [row.views[view] for row in record.rows[1:]]
    return [record.R[0], *(row["R"] for row in shown)], [record.G[0], *(row["G"] for row in shown)]


def comparable(record: RunRecord) -> list[int]:
    """Columns of G whose score is better when higher: retention and ΔG are means over these."""
    return [c for c, capability in enumerate(record.capabilities) if capability.higher_is_better]


def task_unit(record: RunRecord) -> str:
    """Which of ``UNITS`` the mean of a row of R has."""
    logarithmic = [task.metric == "perplexity" for task in record.tasks]
    return "mixed" if any(logarithmic) and not all(logarithmic) else "nats" if all(logarithmic) else "share"


def capability_unit(record: RunRecord, column: int) -> str:
    """``share`` where a capability's scores lie in [0, 1] and higher is better, else ``raw``."""
    scores = [row.G[column] for row in record.rows]
    higher = record.capabilities[column].higher_is_better
    return "share" if higher and all(0 <= score <= 1 for score in scores) else "raw"


def base_stderr(record: RunRecord, items: Items) -> np.ndarray:
    """Standard error over items of the base model's capability scores, shape (C,).

    s/√n of row 0's per-item outcomes; where there are none, √(p(1−p)/n) of a score p in [0, 1], else NaN.
    """
    outcomes = items["G"][0] if items["G"] else {}
    errors = []
    for capability, score in zip(record.capabilities, record.G[0], strict=True):
        values = np.asarray(outcomes.get(capability.name, []), dtype=np.float64)
        if values.size > 1:
            errors.append(float(values.std(ddof=1)) / values.size**0.5)
        elif capability.n > 1 and 0 <= score <= 1:
            errors.append((score * (1 - score) / capability.n) ** 0.5)
        else:
            errors.append(float("nan"))
    return np.array(errors)


def _scores(
    record: RunRecord, R: list[list[float]], G: list[list[float]], stderr: np.ndarray
) -> dict[str, float | str]:
    columns = comparable(record)
    kept = np.asarray(G, dtype=np.float64)[:, columns]  # (T+1, C) of those where higher is better
    chance = np.array([record.capabilities[c].chance for c in columns])
    retention = metrics.mean_retention(metrics.retention(kept, chance, stderr[columns]))
    shares = all(capability_unit(record, c) == "share" for c in columns)
    return {
        "R_unit": task_unit(record),
        "G_unit": "share" if shares else "raw",
        **{name: metric(R) for name, metric in TASK_METRICS.items()},
        "retention": retention.mean,
        "retention_defined": retention.defined,
        "retention_undefined": retention.undefined,
        "delta_G": metrics.delta_capability(kept),
    }


def _flips(record: RunRecord, items: Items) -> dict[str, float]:
    """Mean over the capabilities whose items are right or wrong; none where items were not stored."""
    if len(items["G"]) < len(record.rows):
        return {}
    found = []
    for capability in record.capabilities:
        base = np.asarray(items["G"][0].get(capability.name, []), dtype=np.float64)
        tuned = np.asarray(items["G"][len(record.rows) - 1].get(capability.name, []), dtype=np.float64)
        if base.size and base.shape == tuned.shape and np.isin([base, tuned], (0, 1)).all():
            found.append(metrics.flips(base, tuned, capability.chance if capability.chance < 1 else 0.0))
    return {f"flips_{name}": float(np.mean([getattr(f, name) for f in found])) for name in FLIPS} if found else {}


def _drift(record: RunRecord, view: str) -> dict[str, float]:
    """After the last task, of the run or of a view; ΔCE only of texts that the base model was measured on too."""
    base, end = record.rows[0].drift, record.rows[-1]
    last = end.view_drift.get(view, {}) if view else end.drift
    values = {}
    for text, drift in last.items():
        if text in base:
            values[f"delta_CE:{text}"] = metrics.delta_cross_entropy(base[text].ce, drift.ce)
        values[f"KL_forward:{text}"] = drift.kl_forward
        values[f"KL_reverse:{text}"] = drift.kl_reverse
        if drift.total_variation is not None:
            values[f"TV:{text}"] = drift.total_variation
    if not view and end.fisher_distance is not None:
        values["fisher_distance"] = end.fisher_distance
    return values


def _cost(record: RunRecord) -> dict[str, float]:
    cost = record.cost
    examples = dict.fromkeys(("task", "pretraining", "earlier", "padding"), 0)
    for task in cost.tasks:
        for source, count in task.examples.items():
            examples[source] = examples.get(source, 0) + count
    total = sum(examples.values())
    replayed = examples["pretraining"] + examples["earlier"]  # padding slots are a control: nothing is replayed
    return {
        "tasks_done": max(len(record.rows) - 1, 0),
        "steps": sum(task.steps for task in cost.tasks),
        "tokens": sum(sum(task.tokens.values()) for task in cost.tasks),
        "examples": total,
        "replay_share": replayed / total if total else float("nan"),
        "truncated": sum(task.truncated for task in cost.tasks),
        "flops": sum(task.flops for task in cost.tasks),
        "seconds": cost.setup_seconds + sum(task.seconds for task in cost.tasks),
        "evaluation_seconds": sum(row.evaluation_seconds for row in record.rows),
        "peak_memory_bytes": cost.peak_memory_bytes,
        "parameters": cost.parameters,
        "trainable_parameters": cost.trainable_parameters,
        "stored_floats": cost.stored_floats,
    }


def measured(frame: pd.DataFrame) -> list[str]:
    """Columns of a summary that are numbers to be averaged over seeds."""
    return [column for column in frame.columns if column not in (*LABELS, *COUNTS)]


def _groups(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(mitigation, view, its rows): mitigations in the grid's order, each followed by its views."""
    for mitigation in frame["mitigation"].unique():
        runs = frame[frame["mitigation"] == mitigation]
        for view in sorted(runs["view"].unique(), key=_view_order):
            yield str(mitigation), str(view), runs[runs["view"] == view]


def aggregate(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per mitigation and view: means over the finished seeds with 95% t intervals over seeds.

    Args:
        frame: What :func:`summarise` returned.

    Returns:
        ``mitigation``, ``view``, ``n`` (finished seeds), ``failed``, ``unfinished``, the units, the retention
        counts, and per measured column ``<column>``, ``<column>_low``, ``<column>_high``; the limits are NaN
        for n = 1, all is NaN for n = 0, and a value undefined in one seed is undefined in the mean.
    """
    rows = []
    for mitigation, view, runs in _groups(frame):
        finished = runs[runs["status"] == "finished"]
        row: dict[str, Any] = {
            "mitigation": mitigation,
            "view": view,
            "n": len(finished),
            "failed": int((runs["status"] == "failed").sum()),
            "unfinished": int(runs["status"].isin(["running", "not begun"]).sum()),
        }
        for label in ("R_unit", "G_unit", "retention_defined", "retention_undefined"):
            row[label] = finished[label].iloc[0] if label in finished and len(finished) else None
        for column in measured(frame):
            values = finished[column].astype(float).to_numpy()
            interval = seed_interval(values) if len(values) else None
            row[column] = interval.mean if interval else float("nan")
            row[f"{column}_low"] = interval.low if interval else float("nan")
            row[f"{column}_high"] = interval.high if interval else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def against_baseline(frame: pd.DataFrame, columns: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Per mitigation and column, the difference to naive over the seeds that both finished, paired by seed.

    Returns:
        Empty where naive is not in the study; a mitigation without a common seed is left out.
    """
    finished = frame[(frame["status"] == "finished") & (frame["view"] == "")]
    base = finished[finished["mitigation"] == BASELINE].set_index("seed")
    differences: dict[str, dict[str, Interval]] = {}
    for mitigation in finished["mitigation"].unique():
        runs = finished[finished["mitigation"] == mitigation].set_index("seed")
        seeds = runs.index.intersection(base.index)
        if mitigation == BASELINE or seeds.empty:
            continue
        differences[str(mitigation)] = {
            column: paired_difference(
                base.loc[seeds, column].astype(float), runs.loc[seeds, column].astype(float), "seeds"
            )
            for column in columns
        }
    return differences
