"""Many methods in two figures: all of them in order, and their Pareto front of plasticity and retention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forgetting.analysis.pareto import pareto_front
from forgetting.report.style import Figure, drawn, new_canvas, save, styled

COLORS = {"method": "#0173b2", "oracle": "#de8f05", "reference": ".45", "baseline": "black"}
"""What a row is: colour-blind safe, and told apart by the marker too."""
MARKERS = {"method": "o", "oracle": "D", "reference": "s", "baseline": "*"}
MEANING = {
    "method": "method",
    "oracle": "is told which task is tested",
    "reference": "reference that sees all tasks",
    "baseline": "naive fine-tuning",
}
AXES = {"LA": "learning accuracy LA (points)", "retention": "retention of capabilities (%)"}


def draw_ranking(table: pd.DataFrame, folder: Path) -> Figure:
    """Draw every method's learning accuracy and retention with intervals, best mean of the two on top.

    Args:
        table: A row per method: ``method``, ``kind`` (of COLORS), ``n``, and ``LA`` and ``retention`` in [0, 1] with
            ``_low`` and ``_high``, NaN where there is no interval.
        folder: Where PNG and PDF go.
    """
    order = table.assign(value=(table["LA"] + table["retention"]) / 2).sort_values("value", ignore_index=True)
    with styled():
        canvas = new_canvas(7.2, 1.4 + 0.19 * len(order))
        axes = canvas.subplots(1, 2, sharey=True)
        canvas.get_layout_engine().set(w_pad=0.12)  # type: ignore[call-arg, union-attr]  # tick labels are measured a little short
        for axis, (column, label) in zip(axes, AXES.items(), strict=True):
            for kind in order["kind"].unique():
                rows = order[order["kind"] == kind]
                bars = np.nan_to_num(
                    100
                    * np.stack([rows[column] - rows[f"{column}_low"], rows[f"{column}_high"] - rows[column]]).astype(
                        float
                    )
                )
                axis.errorbar(
                    100 * rows[column],
                    rows.index,
                    xerr=bars,
                    color=COLORS[kind],
                    marker=MARKERS[kind],
                    markersize=9 if kind == "baseline" else 5,
                    linestyle="none",
                    elinewidth=1.1,
                    capsize=2,
                    label=MEANING[kind],
                )
            axis.set_xlabel(label)
            axis.set_ylim(-0.8, len(order) - 0.2)
            low = 100 * float(order[column].min())
            axis.set_xlim(min(-3.0, low - 5), 103)
        axes[0].set_yticks(range(len(order)), [drawn(name) for name in order["method"]], fontsize=7.5)
        axes[0].grid(axis="y", linewidth=0.3)
        axes[1].grid(axis="y", linewidth=0.3)
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=7.5)
        canvas.suptitle("All methods, by the mean of learning accuracy and retention")
        least, most = int(order["n"].min()), int(order["n"].max())
        return save(
            canvas,
            folder,
            "ranking",
            "All methods in order",
            f"Mean over n = {least} to {most} seeds; bars: 95% t interval over seeds, cut at the frame. "
            "Each method at the setting chosen on the tuning sequence.",
        )


def draw_pareto(table: pd.DataFrame, folder: Path) -> Figure:
    """Draw all methods as points of plasticity and retention; those on the front are named.

    Args:
        table: See :func:`draw_ranking`. References and oracles are drawn, and are no part of the front.
        folder: Where PNG and PDF go.
    """
    points = 100 * table[["LA", "retention"]].to_numpy(dtype=np.float64)
    ordinary = np.flatnonzero(table["kind"].isin(["method", "baseline"]))
    front = ordinary[pareto_front(points[ordinary])]
    with styled():
        canvas = new_canvas(7.2, 5.2)
        axis = canvas.subplots()
        axis.plot(*points[front].T, color=COLORS["method"], linewidth=1, alpha=0.6, zorder=1)
        for kind in table["kind"].unique():
            of_kind = points[(table["kind"] == kind).to_numpy()]
            size = 130 if kind == "baseline" else 34
            look: dict[str, Any] = {"color": COLORS[kind], "marker": MARKERS[kind], "label": MEANING[kind]}
            axis.scatter(of_kind[:, 0], of_kind[:, 1], s=size, zorder=2, **look)
        named = {*front, *np.flatnonzero(table["kind"].isin(["baseline", "reference"]))}
        _name(axis, points, {int(i): drawn(str(table["method"].iloc[i])) for i in named})
        axis.set_xlabel(AXES["LA"])
        axis.set_ylabel(AXES["retention"])
        axis.set_xlim(-3, 112)
        axis.set_ylim(min(-5.0, points[:, 1].min() - 5), 110)
        handles, labels = axis.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        axis.set_title("Plasticity against retention: the Pareto front over all methods")
        return save(
            canvas,
            folder,
            "pareto",
            "Pareto front",
            "A point per method at its tuned setting, mean over seeds (n in the table). The line joins the methods "
            "that no other dominates in both means; intervals are in the ranking.",
        )


def _name(axis: object, points: np.ndarray, names: dict[int, str]) -> None:
    """Write names beside their points, each pushed up until it lies on no earlier one."""
    taken: list[tuple[float, float, float]] = []
    for index in sorted(names, key=lambda i: points[i, 1]):
        x, y = points[index]
        left = x + 2.0  # clear of the largest marker
        right = left + 1.25 * len(names[index])
        height = y
        while any(left < r and right > other_left and abs(height - h) < 3.2 for other_left, r, h in taken):
            height += 0.8
        taken.append((left, right, height))
        axis.annotate(  # type: ignore[attr-defined]
            names[index],
            (x, y),
            (left, height),
            fontsize=7.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": ".6", "linewidth": 0.5} if height - y > 1 else None,
        )
