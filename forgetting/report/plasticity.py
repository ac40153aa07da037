"""Plasticity against retention: how well new tasks are learned, and how much of the old is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forgetting.report.style import Figure, Look, drawn, legend_below, new_canvas, save, shorten, state
from forgetting.report.summary import BASELINE, UNITS, aggregate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plasticity_retention(frame: pd.DataFrame, shown: Mapping[str, Look], folder: Path) -> Figure | None:
    """Draw LA against retention, a point per mitigation and view; ``None`` where neither is defined.

    Args:
        frame: What ``summarise`` returned.
        shown: A look per mitigation.
        folder: Where PNG and PDF go.
    """
    points = aggregate(frame).dropna(subset=["LA", "retention"])
    if points.empty:
        return None
    unit = points["R_unit"].iloc[0]
    scales = {"LA": 100 if unit == "share" else 1, "retention": 100}
    canvas = new_canvas(7.2, 4.4 + 0.19 * len(points))
    axis = canvas.subplots()
    handles: list[Any] = []
    for _, point in points.iterrows():
        look, hollow = shown[point["mitigation"]], bool(point["view"])
        bars = {
            f"{side}err": np.nan_to_num([[scale * (point[key] - point[f"{key}_low"])]] * 2)
            for side, (key, scale) in zip("xy", scales.items(), strict=True)
        }
        drawn_bars = axis.errorbar(
            scales["LA"] * point["LA"],
            scales["retention"] * point["retention"],
            **bars,
            color=look.color,
            marker=look.marker,
            markersize=12 if look.marker == "*" else 7.5,
            markerfacecolor="white" if hollow else look.color,
            markeredgecolor=look.color if hollow else "white",
            markeredgewidth=1.4 if hollow else 0.8,
            linestyle="none",
            elinewidth=1.1,
            capsize=2.5,
        )
        handles.append(drawn_bars.lines[0])  # the legend shows the marker without bars
    cut = [_limit(axis, side, points, key, scale) for side, (key, scale) in zip("xy", scales.items(), strict=True)]
    every = [str(name) for name in points["mitigation"].unique()]
    short = dict(zip(every, shorten(every, 46), strict=True))
    labels = [
        drawn(short[name] + state(view)) + (", baseline" if name == BASELINE and not view else "") + f" (n = {n})"
        for name, view, n in zip(points["mitigation"], points["view"], points["n"], strict=True)
    ]
    legend_below(canvas, handles, labels)
    axis.set_xlabel(f"plasticity: learning accuracy LA ({UNITS[unit]})")
    axis.set_ylabel("retention of capabilities (%)")
    bar = "bars: 95% t interval over seeds" if points["n"].max() > 1 else "one seed, no interval"
    bar += ", cut at the frame" if any(cut) else ""
    canvas.suptitle("Plasticity against retention")
    axis.set_title(bar if points["n"].max() == 1 else f"mean over seeds; {bar}", fontsize=8.5, color=".3")
    defined, undefined = int(points["retention_defined"].iloc[0]), int(points["retention_undefined"].iloc[0])
    return save(
        canvas,
        folder,
        "plasticity_retention",
        "Plasticity against retention",
        "Right: new tasks are learned well (LA, the mean score on each task right after training on it). Up: old "
        "capabilities are kept (retention, the share of the base model's score above chance that is left after "
        f"the last task, mean over {defined} capabilities; undefined for {undefined}, on which the base model is "
        "not above chance by two standard errors). Hollow: the same run in another state of the model. "
        f"Mean over seeds (n in the legend); {bar}.",
    )


def _limit(axis: Axes, side: str, points: pd.DataFrame, key: str, scale: float) -> bool:
    """Show the bars whole unless they are so wide, as with two seeds, that the points would fall together."""
    middle = scale * points[key].to_numpy(dtype=np.float64)
    low = np.nanmin([middle, scale * points[f"{key}_low"].to_numpy(dtype=np.float64)])
    high = np.nanmax([middle, scale * points[f"{key}_high"].to_numpy(dtype=np.float64)])
    reach = max(np.ptp(middle), 0.02 * scale)
    shown_low, shown_high = max(low, middle.min() - reach), min(high, middle.max() + reach)
    margin = max(0.06 * (shown_high - shown_low), 0.02 * scale)
    (axis.set_xlim if side == "x" else axis.set_ylim)(shown_low - margin, shown_high + margin)
    return bool(low < shown_low - margin or high > shown_high + margin)
