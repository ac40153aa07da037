"""Which tasks, in which order, forget most: task order against the seed, and tasks near to or against pretraining.

Papers: Bell & Lawrence 2022, The Effect of Task Ordering in Continual Learning, arXiv 2205.13323 (reordering tasks
significantly affects the amount of forgetting); Ramasesh et al. 2020, Anatomy of Catastrophic Forgetting, arXiv
2007.07400 (forgetting is greatest at intermediate similarity); Lopez-Paz & Ranzato 2017, arXiv 1706.08840 (transfer);
Chaudhry et al. 2018, arXiv 1801.10112 (intransigence). Command::

    forgetting study run order_and_similarity --scale laptop

The embedded decoder learns the five new domains of micro-5 in orders that put each task once at each place, three
tasks like those of its pretraining (micro-similar), and three that contradict it (micro-conflict: what was asked
before, with another answer), by naive fine-tuning at one rate and number of steps. ``single_task`` trains each task
from the base model instead. Sequences are compared after as many tasks as the shortest has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forgetting import metrics
from forgetting.analysis.stats import Interval, seed_interval
from forgetting.analysis.variance import variance_components
from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.results import RunRecord
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Verdict, decide, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

TASKS = ("new_facts", "routing", "sorting", "second_language", "formal")
NEAR = {
    "similar": ("more_arithmetic", "new_people", "new_agreement"),
    "conflict": ("flipped_sentiment", "changed_facts", "wrong_arithmetic"),
}
CONTRADICTED = {
    "flipped_sentiment": "micro_sentiment",
    "changed_facts": "micro_facts",
    "wrong_arithmetic": "micro_arithmetic",
}
"""Task to the capability whose answers it changes."""
KINDS = {"similar": "like\npretraining", "new": "new\ndomains", "conflict": "against\npretraining"}
HALF = 0.5
CLAIMS = (
    Claim(
        "order_acc",
        "The order of the same tasks accounts for more than half of the variance of final ACC, the seed for the rest",
        "Bell & Lawrence 2022, arXiv 2205.13323",
        "reordering tasks significantly affects the amount of forgetting",
    ),
    Claim(
        "order_capabilities",
        "The order of the same tasks accounts for more than half of the variance of the loss of capabilities",
        "Bell & Lawrence 2022, arXiv 2205.13323",
        "reordering tasks significantly affects the amount of forgetting",
    ),
    Claim(
        "similar",
        "Tasks like those of pretraining cost fewer points of the capabilities than new domains",
        "Ramasesh et al. 2020, arXiv 2007.07400",
        "forgetting is greatest at intermediate similarity",
    ),
    Claim(
        "conflict",
        "Tasks that contradict pretraining cost more points of the capabilities than new domains",
        "Ramasesh et al. 2020, arXiv 2007.07400",
        "forgetting is greatest at intermediate similarity",
    ),
    Claim(
        "interference",
        "A task that contradicts a capability, alone, loses a larger share of it than of the other capabilities",
        "Ramasesh et al. 2020, arXiv 2007.07400",
    ),
    Claim(
        "backward",
        "Similar tasks forget each other less than new domains do (BWT nearer to 0)",
        "Ramasesh et al. 2020, arXiv 2007.07400",
        "forgetting is greatest at intermediate similarity",
    ),
    Claim(
        "forward",
        "Similar tasks raise each other's score before training by more than new domains do (FWT)",
        "Lopez-Paz & Ranzato 2017, arXiv 1706.08840",
    ),
    Claim(
        "intransigence",
        "New domains are learned worse one after the other than each from the base model (intransigence above 0)",
        "Chaudhry et al. 2018, arXiv 1801.10112",
    ),
)


def orders(scale: Scale) -> list[tuple[str, ...]]:
    """Each task once at each place, with varied neighbours (Williams 1949's rows; ``gpu``: their reverses too)."""
    if scale == "smoke":
        return [TASKS[:2], TASKS[1::-1]]
    rows = [tuple(TASKS[(place + shift) % 5] for place in (0, 1, 4, 2, 3)) for shift in range(5)]
    return rows + [row[::-1] for row in rows] if scale == "gpu" else rows


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """A grid per order, and one per other sequence; the references are in the first order's and in the latter."""

    def grid(sequence: str, tasks: tuple[str, ...], *mitigations: str) -> StudyConfig:
        config = StudyConfig(
            name="order_and_similarity",
            sequence=SequenceConfig(name=sequence, tasks=tasks, test_size=100),
            mitigations=("naive", *mitigations),
            seeds=seeds_of(scale, laptop=4),
            training=TrainingConfig(learning_rate=1e-3, steps=80, batch_size=16, max_length=128),
            evaluation=EvaluationConfig(limit=100, drift=False),
            pretraining=PretrainingConfig(documents=4, held_out_documents=1),  # nothing here reads any
        )
        return sized(config, scale)

    ordered = {
        f"order-{place}": grid("micro-5", tasks, *(["single_task"] if place == 1 else []))
        for place, tasks in enumerate(orders(scale), start=1)
    }
    count = 2 if scale == "smoke" else 3
    near = {kind: grid(f"micro-{kind}", tasks[:count], "single_task") for kind, tasks in NEAR.items()}
    return ordered | near


def by_mitigation(results: Results, grid: str, mitigation: str = "naive") -> dict[int, RunRecord]:
    """A grid's finished runs of one mitigation, by seed."""
    return {r.config.seed: r for r in results.records(grid) if r.config.mitigation == mitigation}


def kinds(results: Results) -> pd.DataFrame:
    """Per kind of tasks and seed: the capabilities' loss −ΔG, and BWT and FWT, after as many tasks as all have.

    New domains are the mean over the orders, so that no order's first tasks stand for all.
    """
    tasks = min(len(config.sequence.tasks or ()) for config in results.grids.values())
    rows = []
    for grid in results.begun:
        for seed, record in by_mitigation(results, grid).items():
            R = np.array(record.R)[: tasks + 1, :tasks]
            row = {"lost": -metrics.delta_capability(record.G[: tasks + 1])}
            row |= {"BWT": metrics.backward_transfer(R), "FWT": metrics.forward_transfer(R)}
            rows.append({"kind": "new" if grid.startswith("order") else grid, "seed": seed, **row})
    return pd.DataFrame(rows).groupby(["kind", "seed"], as_index=False).mean()


def interference(results: Results) -> pd.DataFrame:
    """Per conflicting task and seed, alone: the share lost of the capability it contradicts, and of the others."""
    rows = []
    for seed, record in by_mitigation(results, "conflict", "single_task").items():
        names = [capability.name for capability in record.capabilities]
        chance = [capability.chance for capability in record.capabilities]
        for position, task in enumerate(record.tasks, start=1):
            pair = [record.G[0], record.G[position]]
            lost = 1 - metrics.retention(pair, chance, np.zeros(len(names)))
            own = np.array([name == CONTRADICTED[task.name] for name in names])
            rows.append({"task": task.name, "seed": seed, "own": lost[own].mean(), "others": lost[~own].mean()})
    return pd.DataFrame(rows, columns=["task", "seed", "own", "others"])


def ordered(results: Results) -> pd.DataFrame:
    """The naive runs of micro-5, a row per order and seed."""
    frame = results.finished
    return frame[frame["grid"].str.startswith("order") & (frame["mitigation"] == "naive")]


def order_verdict(results: Results, claim: str, column: str) -> Verdict:
    """Whether order explains more than half of a column's variance over orders and seeds."""
    groups = [group[column].to_numpy() for _, group in ordered(results).groupby("grid")]
    found = variance_components(groups)
    means = [100 * group.mean() for group in groups]
    ours = (
        f"{100 * found.share:.3g}% of the variance (95%, exact: {100 * found.low:.3g} to {100 * found.high:.3g}; "
        f"F = {found.F:.3g}, p = {found.p:.2g}); orders' means are {min(means):.3g} to {max(means):.3g} points, "
        f"{len(groups)} orders × {len(groups[0])} seeds"
    )
    return Verdict(claim, decide(found, HALF), ours)


def conclude(results: Results) -> list[Verdict]:
    """Variance components over orders; the rest paired by seed."""

    def verdict(claim: str, gain: Interval, what: str) -> Verdict:
        return Verdict(claim, decide(gain), f"{told(gain)} {what}")

    frame = kinds(results)
    lost, backward, forward = (frame.pivot(index="seed", columns="kind", values=v) for v in ("lost", "BWT", "FWT"))
    alone = interference(results)
    own = (alone["own"] - alone["others"]).groupby(alone["seed"]).mean()
    runs = results.finished
    single = runs[(runs["grid"] == "order-1") & (runs["mitigation"] == "single_task")].set_index("seed")["LA"]
    worse = single - ordered(results).groupby("seed")["LA"].mean()
    return [
        order_verdict(results, "order_acc", "ACC"),
        order_verdict(results, "order_capabilities", "delta_G"),
        verdict("similar", seed_interval((lost["new"] - lost["similar"]).to_numpy()), "fewer lost"),
        verdict("conflict", seed_interval((lost["conflict"] - lost["new"]).to_numpy()), "more lost"),
        verdict("interference", seed_interval(own.to_numpy()), "of the skill above chance more lost"),
        verdict("backward", seed_interval((backward["similar"] - backward["new"]).to_numpy()), "more"),
        verdict("forward", seed_interval((forward["similar"] - forward["new"]).to_numpy()), "more"),
        verdict("intransigence", seed_interval(worse.to_numpy()), "less learned"),
    ]


def bar(axis: Axes, place: float, values: pd.Series, **look: Any) -> BarContainer:
    """A mean with its 95% t interval over seeds, both × 100."""
    interval = seed_interval(100 * values.to_numpy())
    limits = [[interval.mean - interval.low], [interval.high - interval.mean]]
    return axis.bar(place, interval.mean, yerr=limits, capsize=3, ecolor="0.2", **look)


def draw(results: Results, folder: Path) -> None:
    """Final ACC and loss by order, loss by kind of tasks, and what conflicting tasks do alone."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    colors = seaborn.color_palette("colorblind")
    runs, alone = ordered(results), interference(results)
    seeds = runs["seed"].nunique()
    with styled():
        wide = max(1.0, runs["grid"].nunique() / 5)
        canvas = new_canvas(6.7 + 3.3 * wide, 4.2)
        by_order, by_kind, by_task = panels(canvas, 3, 3, width_ratios=[wide, 1, 1])
        ticks, handles, pair = [], [], []
        for place, (grid, group) in enumerate(runs.groupby("grid", sort=False)):
            ticks.append("\n".join(map(str, results.grids[str(grid)].sequence.tasks or ())).replace("second_", ""))
            beside = place + np.linspace(-0.1, 0.1, len(group))
            for k, values in enumerate((group["ACC"], -group["delta_G"])):
                handles += by_order.plot(beside, 100 * values, "os"[k], color=colors[k], markersize=4, linestyle="")
        by_order.set_xticks(range(len(ticks)), ticks, fontsize=6)
        by_order.set(xlabel="order of the tasks, first above", ylabel="points", title="By order, a point per seed")
        for kind, group in kinds(results).groupby("kind"):
            bar(by_kind, list(KINDS).index(str(kind)), group["lost"], color=colors[2], width=0.6)
        by_kind.set_xticks(range(3), list(KINDS.values()))
        by_kind.set(ylabel="capabilities' loss −ΔG (points)", title="By kind, after as many tasks")
        for place, (_, group) in enumerate(alone.groupby("task", sort=False)):
            pair = [
                bar(by_task, place + shift, group[column], color=color, width=0.35)
                for column, shift, color in (("own", -0.18, colors[5]), ("others", 0.18, colors[7]))
            ]
        by_task.set_xticks(range(alone["task"].nunique()), [t.replace("_", "\n") for t in alone["task"].unique()])
        by_task.set(ylabel="share of the skill above chance lost (%)", title="One conflicting task alone")
        labels = ["final ACC", "capabilities' loss −ΔG", "contradicted capability", "other capabilities"]
        legend_below(canvas, [*handles[:2], *pair], labels)
        canvas.suptitle(f"Naive fine-tuning; bars: mean and 95% t interval over n = {seeds} seeds")
        caption = f"n = {seeds} seeds; bars: mean, whiskers: 95% t interval over seeds."
        save(canvas, folder, "order_and_similarity", "Task order and similarity", caption)


STUDY = Study("order_and_similarity", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
