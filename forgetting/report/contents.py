"""What the report's tables say: the headline, the cost, the difference to naive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from forgetting.report.cells import Table, large, number, spread
from forgetting.report.style import plain, state
from forgetting.report.summary import (
    BASELINE,
    SINGLE_TASK,
    TASK_METRICS,
    UNITS,
    against_baseline,
    aggregate,
    curve_point,
)


@dataclass(frozen=True)
class _Column:
    key: str
    header: str
    scale: float = 1.0
    digits: int = 1


def _texts(frame: pd.DataFrame, prefix: str) -> list[str]:
    """Names of the texts with a column ``<prefix>:<text>``."""
    return [column.partition(":")[2] for column in frame.columns if column.startswith(f"{prefix}:")]


def _unit(points: pd.DataFrame, label: str) -> str:
    known = points[label].dropna()
    return str(known.iloc[0]) if len(known) else "share"


def _seeds(points: pd.DataFrame) -> str:
    """The caption's last sentences: how many seeds, which interval."""
    most = int(points["n"].max()) if len(points) else 0
    if most == 0:
        return "No run has finished yet."
    if most == 1:
        return "n: finished seeds; one seed, so there is no interval."
    return "n: finished seeds; mean ± half of the 95% t interval over seeds (none for n = 1)."


def _excluded(points: pd.DataFrame) -> str:
    runs = points[points["view"] == ""]
    failed, unfinished = int(runs["failed"].sum()), int(runs["unfinished"].sum())
    if not failed + unfinished:
        return ""
    return f" Left out of all means: {failed} failed and {unfinished} unfinished runs."


def _cells(point: pd.Series, columns: Sequence[_Column]) -> list[str]:
    cells = []
    for column in columns:
        mean, high = float(point[column.key]), float(point[f"{column.key}_high"])
        cells.append(spread(column.scale * mean, column.scale * (high - mean), column.digits))
    return cells


def _shown(unit: str) -> tuple[float, int]:
    """Scale and digits of a unit: shares in points."""
    return (100.0, 1) if unit == "share" else (1.0, 3)


def _learned_and_kept(unit: str) -> list[_Column]:
    """The columns that every comparison of mitigations begins with; ``unit`` is R's."""
    scale, digits = _shown(unit)
    return [
        _Column("LA", "LA", scale, digits),
        _Column("ACC", "ACC", scale, digits),
        _Column("forgetting", "forgetting", scale, digits),
        _Column("retention", "retention (%)", 100),
    ]


def headline(frame: pd.DataFrame, *, short: bool = False) -> Table:
    """What was learned and what was forgotten, a row per mitigation and view.

    Args:
        frame: What ``summarise`` returned.
        short: Only the columns that fit into a terminal, and no strengths of a run but its own.
    """
    points = aggregate(frame)
    if short:
        points = points[[curve_point(view) is None for view in points["view"]]]
    R_unit, G_unit = _unit(points, "R_unit"), _unit(points, "G_unit")
    scale, digits = _shown(R_unit)
    columns = [
        *_learned_and_kept(R_unit),
        _Column("delta_G", "ΔG", *_shown(G_unit)),
        *(_Column(f"delta_CE:{text}", f"ΔCE {plain(text)}", 1, 3) for text in _texts(frame, "delta_CE")),
        _Column("BWT", "BWT", scale, digits),
        _Column("FWT", "FWT", scale, digits),
        *([_Column("intransigence", "intransigence", scale, digits)] if "intransigence" in points else []),
        _Column("flips_lost_adjusted", "items lost (%)", 100),
        _Column("flips_gained_adjusted", "items gained (%)", 100),
        *(_Column(f"KL_forward:{text}", f"KL {plain(text)}", 1, 3) for text in _texts(frame, "KL_forward")),
    ]
    if short:
        wanted = ("LA", "ACC", "forgetting", "retention", "delta_G")
        drift = [column for column in columns if column.key.startswith("delta_CE:")][:1]
        columns = [*(column for column in columns if column.key in wanted), *drift]
    else:
        columns = [c for c in columns if c.key == "retention" or points[c.key].notna().any()]
    rows = [
        [plain(point["mitigation"]) + state(point["view"]), str(point["n"]), *_cells(point, columns)]
        for _, point in points.iterrows()
    ]
    return Table(
        "headline",
        f"{_units(points, [column.key for column in columns])}. {_seeds(points)}{_excluded(points)}",
        ["mitigation", "n", *(column.header for column in columns)],
        rows,
    )


def _units(points: pd.DataFrame, keys: Sequence[str]) -> str:
    """What the columns of the headline are measured in."""
    R_unit, G_unit = _unit(points, "R_unit"), _unit(points, "G_unit")
    retention = "retention in % of the base model's skill above chance"
    defined, undefined = points["retention_defined"].dropna(), points["retention_undefined"].dropna()
    if len(undefined) and undefined.iloc[0]:
        total = int(defined.iloc[0] + undefined.iloc[0])
        retention += f", undefined for {int(undefined.iloc[0])} of {total} capabilities"
    parts = [retention]
    task_metrics = ", ".join(key for key in keys if key in (*TASK_METRICS, "intransigence"))
    if task_metrics:
        parts.insert(0, f"{task_metrics} in {UNITS[R_unit]}" + (" (score × 100)" if R_unit == "share" else ""))
    if "intransigence" in keys:
        parts.append(f"intransigence: LA of {SINGLE_TASK} at the same seed − LA")
    if "delta_G" in keys:
        parts.append(f"ΔG in {UNITS[G_unit]}")
    if "flips_lost_adjusted" in keys:
        parts.append("items lost (right before, wrong after) and gained in % of all, adjusted for chance")
    kinds = {"delta_CE": "ΔCE", "KL_forward": "KL(base‖tuned)"}
    drift = [name for prefix, name in kinds.items() if any(key.startswith(f"{prefix}:") for key in keys)]
    if drift:
        parts.append(f"{' and '.join(drift)} in nats per token")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def costs(frame: pd.DataFrame) -> Table:
    """What the runs took, a row per mitigation."""
    points = aggregate(frame[frame["view"] == ""])
    naive = points.loc[(points["mitigation"] == BASELINE) & (points["n"] > 0), "seconds"]
    rows = []
    for _, point in points.iterrows():
        relative = float(point["seconds"] / naive.iloc[0]) if len(naive) and naive.iloc[0] > 0 else math.nan
        half = float(point["seconds_high"] - point["seconds"])
        rows.append(
            [
                plain(point["mitigation"]),
                str(point["n"]),
                number(point["steps"], 0),
                large(point["tokens"]),
                number(100 * point["replay_share"]),
                number(point["truncated"], 0),
                large(point["flops"]),
                spread(point["seconds"], half),
                number(relative, 2),
                number(point["evaluation_seconds"]),
                large(point["peak_memory_bytes"]) + ("" if math.isnan(point["peak_memory_bytes"]) else "B"),
                large(point["trainable_parameters"]),
                large(point["stored_floats"]),
            ]
        )
    return Table(
        "cost",
        "Cost of a whole run, evaluation apart. Replay: share of training examples that were not the task's; "
        "truncated: examples that the length limit shortened; FLOPs: 6 × parameters × tokens; seconds of "
        f"training and of the mitigation's own work, × naive: relative to naive. {_seeds(points)}",
        [
            "mitigation",
            "n",
            "steps",
            "tokens",
            "replay (%)",
            "truncated",
            "FLOPs",
            "seconds",
            "× naive",
            "evaluation (s)",
            "peak memory",
            "trainable",
            "stored floats",
        ],
        rows,
    )


def differences(frame: pd.DataFrame) -> Table | None:
    """Difference to naive, paired by seed; ``None`` where no seed was finished by both."""
    R_unit = _unit(frame, "R_unit")
    columns = [
        *_learned_and_kept(R_unit),
        *(_Column(f"delta_CE:{text}", f"ΔCE {plain(text)}", 1, 3) for text in _texts(frame, "delta_CE")),
    ]
    found = against_baseline(frame, [column.key for column in columns])
    if not found:
        return None
    rows = []
    for mitigation, intervals in found.items():
        cells = []
        for column in columns:
            interval = intervals[column.key]
            cells.append(spread(column.scale * interval.mean, column.scale * interval.half_width, column.digits))
        rows.append([plain(mitigation), str(intervals["LA"].n), *cells])
    return Table(
        "against_naive",
        f"Mitigation − naive, paired by seed: LA, ACC and forgetting in {UNITS[R_unit]}, retention in percentage "
        "points, ΔCE in nats per token. n: seeds that both finished; mean ± half of the 95% t interval over "
        "seeds (none for n = 1).",
        ["mitigation", "n", *(column.header for column in columns)],
        rows,
    )
