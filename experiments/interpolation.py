"""Is there a free point between the pretrained and the tuned weights? Paths, and merging against them.

Papers: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903; Ilharco et al. 2023,
Editing Models with Task Arithmetic, arXiv 2212.04089; Matena & Raffel 2022, Merging Models with Fisher-Weighted
Averaging, arXiv 2111.09832. Command::

    forgetting study run interpolation --scale laptop

The embedded decoder learns two tasks of micro-5; every row is scored at points of the path from the pretrained to the
tuned weights (wise_ft), and at scales of the sum of the task vectors (task_arithmetic). Which point is used is chosen
on micro-tuning: other tasks, seeds and probe items. Merging after each task runs once per weight: weighted by Fisher
information (fisher_merge), and plain (merge_previous), which differs in nothing else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from forgetting.analysis.pareto import matched_gain
from forgetting.analysis.stats import Interval, paired_difference, seed_interval
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.report.summary import curve_point
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Outcome, Verdict, decide, decide_all, decide_below, told

DAMAGE = "delta_CE:pretraining"
MEASURES = ("ACC", "LA", "retention", DAMAGE)
LOSS_SLACK = 0.01
"""Nats per token above the line between the ends: less is called no barrier."""
SCORE_SLACK = 0.02
"""Of ACC, LA and retention: two points."""
CLAIMS = (
    Claim(
        "loss",
        f"No point of the path has a pretraining loss more than {LOSS_SLACK} nats per token above the line between "
        "its ends",
        "Wortsman et al. 2022, arXiv 2109.01903",
    ),
    Claim(
        "score",
        f"On no point of the path is the tasks' accuracy, or retention, more than {100 * SCORE_SLACK:g} points below "
        "the line between its ends",
        "Wortsman et al. 2022, arXiv 2109.01903",
        "for CLIP on ImageNet and five distribution shifts no point is below the line",
    ),
    Claim(
        "free",
        "The point chosen on other tasks retains more than the tuned end, at a learning accuracy less than "
        f"{100 * SCORE_SLACK:g} points below it",
        "Wortsman et al. 2022, arXiv 2109.01903",
        "+4 to 6 points under distribution shift over prior work, with +1.6 points on ImageNet",
    ),
    Claim(
        "sum",
        "The sum of the task vectors, at the scale chosen on other tasks, raises every task above the base model",
        "Ilharco et al. 2023, arXiv 2212.04089",
        "adding task vectors improves several tasks at once",
    ),
    Claim(
        "fisher",
        "Merging weighted by Fisher information retains more than plain merging, averaged over the learning "
        "accuracies that both reach",
        "Matena & Raffel 2022, arXiv 2111.09832",
        "Fisher merging gains over simple averaging in robust fine-tuning",
    ),
)


def _listed(values: np.ndarray) -> str:
    return "|".join(f"{value:.3g}" for value in values)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """Paths on the tuning tasks; paths and merging on the reported ones."""
    points = np.linspace(0, 1, {"smoke": 3, "laptop": 11, "gpu": 21}[scale])[1:-1]
    scales = np.linspace(0, 1, {"smoke": 3, "laptop": 6, "gpu": 11}[scale])[1:-1]
    weights = np.linspace(0, 1, {"smoke": 3, "laptop": 6, "gpu": 11}[scale])[1:-1]
    paths = (f"wise_ft:alpha=1,curve={_listed(points)}", f"task_arithmetic:scale=1,curve={_listed(scales)}")
    merging = tuple(f"{name}:weight={w:.3g}" for name in ("fisher_merge", "merge_previous") for w in weights)

    def study(
        name: str, sequence: str, tasks: tuple[str, ...], mitigations: tuple[str, ...], tuning: bool
    ) -> StudyConfig:
        config = StudyConfig(
            name=name,
            sequence=SequenceConfig(name=sequence, tasks=tasks, test_size=100),
            mitigations=mitigations,
            seeds=tuple((100 if tuning else 0) + seed for seed in seeds_of(scale)),
            training=TrainingConfig(learning_rate=1e-3, steps=120, batch_size=16, max_length=128),
            evaluation=EvaluationConfig(limit=100, offset=100 if tuning else 0, drift=not tuning, drift_tokens=5000),
        )
        text = {"documents": 64, "held_out_documents": 16}
        return sized(config, scale, tasks=1, evaluation={"drift_tokens": 200}, pretraining=text)

    learned = ("new_facts", "second_language")
    return {
        "tuning": study("interpolation-tuning", "micro-tuning", ("storing", "shifting"), paths, True),
        "reported": study("interpolation", "micro-5", learned, (*paths, *merging), False),
    }


def path(results: Results, grid: str, method: str) -> pd.DataFrame:
    """MEASURES by seed and point: the run's own is 1, its views lie below, and the base model is 0."""
    frame = results.frame
    rows = frame[(frame["grid"] == grid) & (frame["status"] == "finished") & frame["mitigation"].str.startswith(method)]
    points = [1.0 if not view else (curve_point(view) or ("", float("nan")))[1] for view in rows["view"]]
    shown = rows[["seed"]].assign(point=points, **{name: rows.get(name, np.nan) for name in MEASURES})
    return pd.concat([base(results, grid, method), shown]).sort_values(["seed", "point"], ignore_index=True)


def base(results: Results, grid: str, method: str) -> pd.DataFrame:
    """The point 0 of every seed."""
    records = [record for record in results.records(grid) if record.config.mitigation.startswith(method)]
    rows = [(record.config.seed, 0.0, np.mean(record.R[0]), np.mean(record.R[0]), 1.0, 0.0) for record in records]
    return pd.DataFrame(rows, columns=["seed", "point", *MEASURES]).drop_duplicates(ignore_index=True)


def merged(results: Results, method: str) -> pd.DataFrame:
    """MEASURES by seed and weight of a merging method; weight 0 is the base model, 1 is the end of the path."""
    frame = results.finished
    rows = frame[(frame["grid"] == "reported") & frame["mitigation"].str.startswith(method)]
    weights = rows["mitigation"].str.partition("=")[2].astype(float)
    between = rows[["seed", *MEASURES]].assign(point=weights)
    ends = path(results, "reported", "wise_ft")
    ends = ends[ends["point"].isin([0.0, 1.0])]
    return pd.concat([ends, between]).sort_values(["seed", "point"], ignore_index=True)


def below_line(points: pd.DataFrame, slack: float, *columns: str) -> tuple[Outcome, Interval]:
    """Is a measure nowhere further below the line between its ends than ``slack``; and the largest mean gap."""
    gaps = []
    for column in columns:
        table = points.pivot(index="seed", columns="point", values=column)
        share = table.columns.to_numpy(dtype=float)
        line = np.outer(table[0.0], 1 - share) + np.outer(table[1.0], share)
        gaps += list((line - table.to_numpy())[:, 1:-1].T)
    outcome, _ = decide_all([slack - gap for gap in gaps])
    return outcome, seed_interval(max(gaps, key=lambda gap: float(gap.mean())))


def chosen_point(points: pd.DataFrame) -> float:
    """On the tuning tasks: the point that retains most of those within SCORE_SLACK of the end's learning accuracy."""
    means = points.groupby("point", as_index=False)[["LA", "retention"]].mean()
    enough = means["LA"] >= means["LA"].iloc[-1] - SCORE_SLACK
    return float(means["point"][means["retention"].where(enough).argmax()])


def free(points: pd.DataFrame, point: float) -> Verdict:
    """Is the chosen point free on the reported tasks? Both halves must hold; one that fails decides."""
    if point == 1.0:
        return Verdict("free", "fails", "on the tuning tasks every point before the end learns less")
    here, end = (points[points["point"] == p].set_index("seed") for p in (point, 1.0))
    gain = paired_difference(end["retention"], here["retention"], "seeds")
    cost = paired_difference(here["LA"], end["LA"], "seeds")
    halves = {decide(gain), decide_below(cost, SCORE_SLACK)}
    outcome: Outcome = "fails" if "fails" in halves else "undecided" if "undecided" in halves else "holds"
    return Verdict("free", outcome, f"at {point:g}: {told(gain)} more retained, {told(cost)} less learned")


def lifted(results: Results, point: float) -> tuple[Outcome, Interval]:
    """Does the sum of the task vectors lift every task; and the lift of the one that it lifts least."""
    lifts = []
    for record in results.records("reported"):
        if record.config.mitigation.startswith("task_arithmetic"):
            last = record.rows[-1]
            scores = last.R if point == 1.0 else last.views[f"scale={point:g}"]["R"]
            lifts.append(np.subtract(scores, record.R[0]))
    return decide_all(list(np.array(lifts).T))


def fisher_gain(results: Results) -> Interval:
    """What Fisher weights retain more than plain ones, paired by seed; NaN where nothing was learned."""
    fisher, plain = (merged(results, method) for method in ("fisher_merge", "merge_previous"))
    gains = []
    for seed in fisher["seed"].unique():
        curves = [curve.loc[curve["seed"] == seed, ["LA", "retention"]] for curve in (fisher, plain)]
        gains.append(matched_gain(curves[0], curves[1], curves[0]["LA"].iloc[0]))  # from the base model's
    return seed_interval(gains)


def conclude(results: Results) -> list[Verdict]:
    """The points furthest on the wrong side of the line, and what the chosen points gain, paired by seed."""
    points = path(results, "reported", "wise_ft")
    smooth, barrier = below_line(points.assign(**{DAMAGE: -points[DAMAGE]}), LOSS_SLACK, DAMAGE)
    above, under = below_line(points, SCORE_SLACK, "ACC", "retention")
    point = chosen_point(path(results, "tuning", "wise_ft"))
    sums = path(results, "tuning", "task_arithmetic").groupby("point", as_index=False)["ACC"].mean().iloc[1:]
    scale = float(sums["point"].iloc[sums["ACC"].argmax()])
    (lifts, lift), gain = lifted(results, scale), fisher_gain(results)
    return [
        Verdict("loss", smooth, f"{told(barrier, 1, 'nats per token')} above at most"),
        Verdict("score", above, f"{told(under)} below at most"),
        free(points, point),
        Verdict("sum", lifts, f"at scale {scale:g} the least raised task: {told(lift)} above the base model"),
        Verdict("fisher", decide(gain), f"{told(gain)} more retained"),
    ]


METHODS = {
    "wise_ft": "path to the tuned weights (WiSE-FT)",
    "task_arithmetic": "sum of task vectors",
    "fisher_merge": "merging by Fisher",
    "merge_previous": "plain merging",
}


def draw(results: Results, folder: Path) -> None:
    """Loss and scores along the path, with the line between its ends; retention over learning accuracy by method."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    points = path(results, "reported", "wise_ft") if "reported" in set(results.finished["grid"]) else None
    if points is None or points.empty:
        return
    seeds = points["seed"].nunique()
    colors = seaborn.color_palette("colorblind")
    with styled():
        canvas = new_canvas(9.0, 3.6)
        loss, score, plane = panels(canvas, 3, 3)
        along = ((loss, DAMAGE, 1, colors[4], "o"), (score, "ACC", 100, colors[0], "s"))
        for axis, column, unit, color, marker in (*along, (score, "retention", 100, colors[1], "^")):
            intervals = [seed_interval(unit * part.to_numpy()) for _, part in points.groupby("point")[column]]
            at, means = sorted(points["point"].unique()), [i.mean for i in intervals]
            axis.plot(at, means, color=color, marker=marker, markersize=4, label=column)
            axis.fill_between(at, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.2, lw=0)
            axis.plot([0, 1], [means[0], means[-1]], color=color, linestyle="--", linewidth=1)
            axis.set_xlabel("share α of the tuned weights")
        loss.set_ylabel("rise of held-out loss (nats per token)")
        score.set_ylabel("ACC (points), retention (%)")
        score.legend()
        handles = []
        for method, color, marker in zip(METHODS, colors, "osD^", strict=False):
            curve = merged(results, method) if "merge" in method else path(results, "reported", method)
            mean = 100 * curve.groupby("point")[["LA", "retention"]].mean()
            handles += plane.plot(mean["LA"], mean["retention"], color=color, marker=marker, markersize=4)
        plane.set_xlabel("learning accuracy LA (points)")
        plane.set_ylabel("retention (%)")
        legend_below(canvas, handles, [f"right: {label}" for label in METHODS.values()])
        canvas.suptitle(f"Between the pretrained and the tuned weights; means over n = {seeds} seeds")
        caption = (
            f"Means over n = {seeds} seeds; bands: 95% t interval over seeds; dashed: the line between the ends. "
            "Right: each method's curve over its strength, from the base model."
        )
        save(canvas, folder, "interpolation", "Between the pretrained and the tuned weights", caption)


STUDY = Study("interpolation", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
