"""Plasticity against retention: how well new tasks are learned, and how much of the old is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forgetting.errors import UsageError
from forgetting.mitigations import get_mitigation, parse_mitigation
from forgetting.report.style import Figure, Look, drawn, legend_below, new_canvas, save, shorten, state
from forgetting.report.summary import BASELINE, UNITS, aggregate, curve_point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Place = tuple[float, float]
CURVE = "; small, on a line with the run's own point: at the strengths written beside them, without bars"


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
    alone = points[[curve_point(view) is None for view in points["view"]]]
    curves = _curves(points, scales)
    canvas = new_canvas(7.2, 4.4 + 0.19 * (len(alone) + len(curves)))
    axis = canvas.subplots()
    every = [str(name) for name in points["mitigation"].unique()]
    short = dict(zip(every, shorten(every, 46), strict=True))
    handles: list[Any] = []
    labels: list[str] = []
    for _, point in alone.iterrows():
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
        baseline = ", baseline" if point["mitigation"] == BASELINE and not hollow else ""
        labels.append(drawn(short[point["mitigation"]] + state(point["view"])) + f"{baseline} (n = {point['n']})")
    for (name, key), places in curves.items():
        handles.append(_curve(axis, places, _own_value(name, key), shown[name]))
        labels.append(drawn(f"{short[name]} at other {key}"))
    cut = [_limit(axis, side, points, key, scale) for side, (key, scale) in zip("xy", scales.items(), strict=True)]
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
        "not above chance by two standard errors). Hollow: the same run in another state of the model"
        f"{CURVE if curves else ''}. "
        f"Mean over seeds (n in the legend); {bar}.",
    )


def _curves(points: pd.DataFrame, scales: Mapping[str, float]) -> dict[tuple[str, str], dict[float | None, Place]]:
    """Places by strength, per mitigation and its option; the run's own place under ``None``."""
    own: dict[str, Place] = {}
    curves: dict[tuple[str, str], dict[float | None, Place]] = {}
    for _, point in points.iterrows():
        name, place = str(point["mitigation"]), (scales["LA"] * point["LA"], scales["retention"] * point["retention"])
        found = curve_point(point["view"])
        if not point["view"]:
            own[name] = place
        elif found:
            curves.setdefault((name, found[0]), {None: own[name]} if name in own else {})[found[1]] = place
    return curves


def _curve(axis: Axes, places: dict[float | None, Place], own_value: float | None, look: Look) -> Any:
    """Draw strengths as small hollow points, and a line through them and the run's own place, by value."""
    others = {value: place for value, place in places.items() if value is not None}
    for value, place in others.items():
        axis.annotate(f"{value:g}", place, (4, 3), textcoords="offset points", fontsize=6.5, color=look.color)
    line = dict(others)
    if own_value is not None and None in places:
        line[own_value] = places[None]
    axis.plot(*np.array([line[value] for value in sorted(line)]).T, color=look.color, linewidth=0.8, zorder=1)
    small: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": look.color}
    return axis.plot(*np.array(list(others.values())).T, linestyle="none", marker=look.marker, zorder=2, **small)[0]


def _own_value(mitigation: str, key: str) -> float | None:
    """The strength at which the run's own point is; ``None`` where that cannot be told (a file that is gone)."""
    try:
        for name, given in parse_mitigation(mitigation):
            fields = get_mitigation(name).Options.model_fields
            if key in fields and "curve" in fields:
                return float(given.get(key, fields[key].default))
    except (UsageError, TypeError, ValueError):
        pass
    return None


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
