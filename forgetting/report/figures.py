"""The figures, drawn from records: task matrix, capabilities, plasticity against retention, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forgetting.report.plasticity import plasticity_retention
from forgetting.report.style import (
    Figure,
    Look,
    drawn,
    legend_below,
    looks,
    new_canvas,
    panels,
    plain,
    save,
    shorten,
    styled,
    wrapped,
)
from forgetting.report.summary import capability_unit
from forgetting.results import RunRecord

Finished = Mapping[str, Sequence[RunRecord]]
"""The finished runs of each mitigation that has any, in the grid's order."""

NAMES = ("task_matrix", "capabilities", "plasticity_retention", "drift")


def draw_figures(finished: Finished, frame: pd.DataFrame, folder: Path) -> list[Figure]:
    """Draw what can be drawn: nothing without a finished run, no drift where none was measured.

    Args:
        finished: Finished runs per mitigation.
        frame: What ``summarise`` returned.
        folder: Where PNG and PDF files go; figures of an earlier report that are not drawn again are deleted.
    """
    figures = []
    if finished:
        shown = looks([str(name) for name in frame["mitigation"].unique()])
        with styled():
            for figure in (
                _task_matrix(finished, folder),
                _capabilities(finished, shown, folder),
                plasticity_retention(frame, shown, folder),
                _drift(finished, shown, folder),
            ):
                figures += [figure] if figure else []
    for name in set(NAMES) - {figure.name for figure in figures}:
        for suffix in ("png", "pdf"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    return figures


def _seeds(finished: Finished) -> str:
    """How many seeds the means are over: ``3 seeds``, or ``2 to 3 seeds``."""
    counts = sorted({len(records) for records in finished.values()})
    several = "" if counts == [1] else "s"
    return f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{several}"


def _legend_names(names: Sequence[str], counts: Sequence[int], width: int = 46) -> list[str]:
    short = shorten(names, width)
    return [drawn(f"{name} (n = {count})") for name, count in zip(short, counts, strict=True)]


def _row_labels(record: RunRecord, width: int) -> list[str]:
    return ["base", *(drawn(f"after {name}") for name in shorten([task.name for task in record.tasks], width))]


def _mean(records: Sequence[RunRecord], matrix: str) -> np.ndarray:
    """Mean over seeds of R or G, shape (T+1, columns)."""
    return np.mean([getattr(record, matrix) for record in records], axis=0)


def _task_matrix(finished: Finished, folder: Path) -> Figure:
    import seaborn

    first = next(iter(finished.values()))[0]
    tasks = len(first.tasks)
    means = {name: _mean(records, "R") for name, records in finished.items()}
    shares = [task.metric != "perplexity" for task in first.tasks]
    everything = np.stack(list(means.values()))  # (mitigations, T+1, T)
    low = np.where(shares, 0.0, everything.min(axis=(0, 1)))
    high = np.where(shares, 1.0, np.maximum(everything.max(axis=(0, 1)), low + 1e-9))
    numbered = tasks <= 10
    size = 7.5 if numbered else 6.5
    cell = 0.36 if numbered else 0.18
    panel = max(2.3, cell * tasks + 0.6)
    columns = min(len(means), max(1, int(9.5 / panel)))
    rows = -(-len(means) // columns)
    labels_width, labels_height = 1.5, 1.3
    canvas = new_canvas(
        max(4.6, columns * panel + labels_width + 0.8), rows * (0.75 * cell * (tasks + 1) + 0.5) + labels_height + 0.4
    )
    axes = panels(canvas, len(means), columns, sharex=False, sharey=True)
    task_names = [
        drawn(name) + ("" if share else ",\n−ln(ppl)")
        for name, share in zip(shorten([task.name for task in first.tasks], 16), shares, strict=True)
    ]
    titles = shorten(list(means), int(panel * 30))
    for position, (axis, (name, R)) in enumerate(zip(axes, means.items(), strict=True)):
        numbers = [
            [f"{100 * value:.0f}" if share else f"{value:.1f}" for value, share in zip(row, shares, strict=True)]
            for row in R
        ]
        seaborn.heatmap(
            100 * (R - low) / (high - low),
            ax=axis,
            vmin=0,
            vmax=100,
            cmap="viridis",
            annot=np.array(numbers) if numbered else False,
            fmt="",
            annot_kws={"fontsize": 7.5},
            cbar=False,
            linewidths=0.5,
            linecolor="white",
        )
        axis.set_title(
            f"{drawn(wrapped(titles[position], int(panel * 13)))}\n(n = {len(finished[name])})", fontsize=8.5
        )
        lowest = position + columns >= len(means)
        axis.set_xticks(np.arange(tasks) + 0.5, task_names if lowest else [""] * tasks, rotation=90, fontsize=size)
        axis.set_yticks(np.arange(tasks + 1) + 0.5, _row_labels(first, 14), rotation=0, fontsize=size)
        axis.tick_params(length=0, labelleft=position % columns == 0)
    bar = canvas.colorbar(
        axes[0].collections[0], ax=axes, shrink=min(0.8, 4 / canvas.get_figheight()), aspect=25, pad=0.015
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5, length=0)
    unit = "score on the test split (points)"
    bar.set_label(unit if all(shares) else f"{unit}; −ln(perplexity): its column's range", fontsize=8)
    canvas.supxlabel("task scored", fontsize=9)
    canvas.supylabel("model scored", fontsize=9)
    canvas.suptitle(f"Task matrix R, mean over {_seeds(finished)}")
    note = "" if all(shares) else " A column of −ln(perplexity) is written as it is and coloured over its own range."
    return save(
        canvas,
        folder,
        "task_matrix",
        "Task matrix R",
        "Score on each task (column) after training on the tasks so far (row); the first row is the base model, "
        f"100 points is perfect. Mean over {_seeds(finished)}; no interval is shown.{note}",
    )


def _capabilities(finished: Finished, shown: Mapping[str, Look], folder: Path) -> Figure | None:
    from matplotlib.lines import Line2D

    first = next(iter(finished.values()))[0]
    count = len(first.capabilities)
    if not count:
        return None
    means = {name: _mean(records, "G") for name, records in finished.items()}
    units = [
        "share"
        if all(capability_unit(record, c) == "share" for records in finished.values() for record in records)
        else "raw"
        for c in range(count)
    ]
    columns = min(count, 4 if count <= 16 else 6)
    canvas = new_canvas(
        9 if columns > 2 else 4 + 1.5 * columns, 1.15 + 0.2 * len(finished) + 1.55 * -(-count // columns)
    )
    axes = panels(canvas, count, columns, sharex=True, sharey=set(units) == {"share"})
    titles = shorten([capability.name for capability in first.capabilities], 27 if columns <= 4 else 19)
    steps = np.arange(len(first.rows))
    for c, (axis, capability) in enumerate(zip(axes, first.capabilities, strict=True)):
        scale = 100 if units[c] == "share" else 1
        for name, G in means.items():
            look = shown[name]
            axis.plot(
                steps,
                scale * G[:, c],
                color=look.color,
                linestyle=look.dash,
                linewidth=look.width,
                marker=look.marker,
                markersize=6 if look.marker == "*" else 3.2,
                markeredgewidth=0,
            )
        axis.axhline(scale * means[next(iter(means))][0, c], color=".35", linestyle="--", linewidth=0.9)
        if units[c] == "share":
            axis.axhline(scale * capability.chance, color=".35", linestyle=":", linewidth=1.2)
        else:
            direction = "" if capability.higher_is_better else ", lower is better"
            axis.set_ylabel(f"{plain(capability.metric)}{direction}", fontsize=7)
        axis.set_title(drawn(titles[c]), fontsize=8 if columns <= 4 else 7)
        axis.set_xticks(steps[:: -(-len(steps) // 8)])
        axis.tick_params(labelsize=7)
        if c + columns >= count:  # nothing below it
            axis.xaxis.set_tick_params(labelbottom=True)
            axis.set_xlabel("tasks trained on", fontsize=8 if columns <= 4 else 7)
    handles: list[Any] = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dash, linewidth=look.width, markersize=5)
        for look in (shown[name] for name in means)
    ]
    labels = _legend_names(list(means), [len(finished[name]) for name in means])
    handles += [Line2D([], [], color=".35", linestyle="--"), Line2D([], [], color=".35", linestyle=":")]
    legend_below(canvas, handles, [*labels, "base model", "chance"])
    canvas.supylabel("score (points)" if "share" in units else "score", fontsize=9)
    canvas.suptitle(f"Capabilities over the sequence, mean over {_seeds(finished)}")
    return save(
        canvas,
        folder,
        "capabilities",
        "Capabilities over the sequence",
        "Score on each capability that the base model was probed for, after each task. Dashed: the base model; "
        f"dotted: chance, the score of guessing. Mean over {_seeds(finished)}; no interval is shown.",
    )


def _drift(finished: Finished, shown: Mapping[str, Look], folder: Path) -> Figure | None:
    first = next(iter(finished.values()))[0]
    every = [row.drift for records in finished.values() for record in records for row in record.rows]
    texts = [text for text in first.rows[0].drift if all(text in drift for drift in every)]
    if not texts:
        return None
    columns = min(len(texts), 2)
    canvas = new_canvas(7.2 if columns == 1 else 9, 1.6 + 0.2 * len(finished) + 2.6 * -(-len(texts) // columns))
    axes = panels(canvas, len(texts), columns, sharex=True)
    handles: list[Any] = []
    for axis, text, title in zip(axes, texts, shorten(texts, 50), strict=True):
        axis.axhline(0, color=".35", linestyle="--", linewidth=0.9)
        handles = []
        for name, records in finished.items():
            look = shown[name]
            ce = np.mean([[row.drift[text].ce for row in record.rows] for record in records], axis=0)  # (T+1,)
            handles += axis.plot(
                ce - ce[0],
                color=look.color,
                linestyle=look.dash,
                linewidth=look.width,
                marker=look.marker,
                markersize=9 if look.marker == "*" else 5,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
        axis.set_title(drawn(title))
        axis.set_xticks(range(len(first.rows)), _row_labels(first, 16), rotation=35, ha="right", fontsize=8)
    axes[0].set_ylabel("ΔCE to the base model\n(nats per token)")
    legend_below(canvas, handles, _legend_names(list(finished), [len(records) for records in finished.values()]))
    canvas.suptitle(f"Drift on held-out text, mean over {_seeds(finished)}")
    return save(
        canvas,
        folder,
        "drift",
        "Drift on held-out text",
        "Change of the cross-entropy on held-out text like the base model's pretraining data, after − before: "
        f"above 0, the text has become harder to predict. Mean over {_seeds(finished)}; no interval is shown.",
    )
