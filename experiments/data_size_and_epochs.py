"""Do few examples overfit and forget, and which early stopping helps? Number of examples × epochs at equal steps.

Papers: Béthune et al. 2025, Scaling Laws for Forgetting during Finetuning with Pretraining Data Injection, arXiv
2502.06042 (little data is overfitted quickly; at the minimum of the validation loss more data has forgotten more);
Kalajdzievski 2024, Scaling Laws for Forgetting When Fine-Tuning Large Language Models, arXiv 2401.05605 (forgetting
grows with the number of steps, and early stopping does not avoid it); Prechelt 1998, Early Stopping - But When?
Command::

    forgetting study run data_size_and_epochs --scale laptop

The embedded decoder learns one task from few or many examples in the same number of steps: few are seen in many epochs.
It is never stopped, or by the task's own validation loss, by the loss on pretraining text, or blindly after a part of
the steps. Each task is a run of its own, because a limit on the pretraining loss holds over all tasks of a run; numbers
are means over the two tasks. The validation split has 100 examples whatever the training split has.

Each seed has examples of its own, drawn anew with the tasks' facts and words: of as few examples as a batch has, the
order changes nothing, and runs that differ in it alone would be one run counted three times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from forgetting.analysis.pareto import retention_at
from forgetting.analysis.stats import Interval, paired_difference, seed_interval
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Verdict, decide, decide_below, told

BATCH = 16
DAMAGE = "delta_CE:pretraining"
COST = 0.02
"""A learning accuracy that is lower by less costs nothing."""
FORGOTTEN = 0.1
"""Nats per token: a greater rise of the loss on held-out pretraining text is called forgetting."""
NEVER = "naive"
OWN = "early_stopping:every=5,patience=4"
PRETRAINING = "early_stopping:metric=pretraining,every=5,max_increase=0.3"
CURVES = {
    "own": (OWN, *(f"early_stopping:every=5,patience={n}" for n in (1, 2))),
    "pretraining": (PRETRAINING, *(f"early_stopping:metric=pretraining,every=5,max_increase={x}" for x in (0.1, 1))),
    "blind": ("few_steps:fraction=0.25", "few_steps:fraction=0.5"),
}
"""By rule, its strengths. Each curve ends where training is not stopped at all."""
OURS = "a question of our own"
BETHUNE, KALAJDZIEVSKI = "Béthune et al. 2025, arXiv 2502.06042", "Kalajdzievski 2024, arXiv 2401.05605"
CLAIMS = (
    Claim(
        "few_learn_less",
        "After equal steps, the model knows less of a task if it saw the fewest examples instead of the most",
        BETHUNE,
        "limited target data is overfitted quickly",
    ),
    Claim(
        "few_forget_more",
        "After equal steps, the fewest examples (most epochs) have raised the held-out loss by more than the most",
        OURS,
    ),
    Claim(
        "more_data_forgets",
        "Stopped by its own validation loss, a task raises the held-out loss by more if it has more examples",
        BETHUNE,
        "in the law for the pretraining loss, forgetting grows as a power of the amount of fine-tuning data",
    ),
    Claim(
        "own_is_free",
        f"Stopping by the task's own validation loss costs less than {100 * COST:g} points of learning accuracy",
        "a question of our own",
    ),
    Claim(
        "own_retains",
        "Stopping by the task's own validation loss retains more than taking all steps",
        OURS,
    ),
    Claim(
        "pretraining_retains",
        "Stopping at a rise of the pretraining loss of 0.3 nats retains more than stopping by the task's own loss",
        OURS,
    ),
    Claim("pretraining_costs", "It learns less than stopping by the task's own loss", OURS),
    Claim(
        "matched",
        "At matched learning accuracy, stopping by the pretraining loss retains more than by the task's own",
        OURS,
    ),
    Claim(
        "not_avoided",
        "Of all rules that reach nine tenths of the learning accuracy of all steps, the one that raises the "
        f"held-out loss least raises it by more than {FORGOTTEN} nats per token",
        KALAJDZIEVSKI,
        "forgetting cannot be avoided through early stopping",
    ),
)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """A grid per task, number of examples and draw of them (which has the seed of its number): stopping rules."""
    smoke = scale == "smoke"
    sizes = {"smoke": (16, 32), "laptop": (16, 64, 256), "gpu": (16, 32, 64, 128, 256, 500)}[scale]
    settings = (NEVER, *(setting for curve in CURVES.values() for setting in curve[: 1 if smoke else None]))

    def grid(task: str, size: int, seed: int) -> StudyConfig:
        config = StudyConfig(
            name=f"data_size_and_epochs-{task}-{size}-draw{seed}",
            sequence=SequenceConfig(
                name="micro-5", tasks=(task,), train_size=size, validation_size=100, test_size=100, split_seed=seed
            ),
            mitigations=settings,
            seeds=(seed,),
            training=TrainingConfig(learning_rate=1e-3, steps=100, batch_size=BATCH, max_length=128),
            evaluation=EvaluationConfig(limit=100, drift_tokens=5000),
        )
        return sized(config, scale, sequence={"train_size": size, "validation_size": 8})

    tasks = ("routing",) if smoke else ("routing", "second_language")
    return {
        f"{task}_{size}-draw{seed}": grid(task, size, seed)
        for task in tasks
        for size in sizes
        for seed in seeds_of(scale)
    }


def cells(results: Results) -> pd.DataFrame:
    """Means over the tasks, by number of examples, setting and seed; what not every task has yet is left out."""
    frame = results.finished
    parts = frame["grid"].str.extract(r"(?P<task>.+)_(?P<size>\d+)-draw\d+")
    frame = frame.assign(task=parts["task"], size=parts["size"].astype(int))
    groups = frame.groupby(["size", "mitigation", "seed"], sort=False)
    whole = groups["task"].nunique() == frame["task"].nunique()
    return groups[["LA", "retention", DAMAGE, "steps"]].mean()[whole].reset_index()


def by_seed(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column's mean over the numbers of examples, seeds × settings."""
    return frame.pivot_table(index="seed", columns="mitigation", values=column)


def sizes(frame: pd.DataFrame) -> list[int]:
    """The numbers of examples, the fewest first."""
    return sorted(set(frame["size"].tolist()))


def of_size(frame: pd.DataFrame, setting: str, size: int, column: str) -> pd.Series:
    """A column at one setting and number of examples, by seed."""
    return frame[(frame["mitigation"] == setting) & (frame["size"] == size)].set_index("seed")[column].sort_index()


def matched(frame: pd.DataFrame) -> pd.DataFrame:
    """How much more stopping by the pretraining loss retains, seeds × numbers of examples.

    It is read at nine tenths of the learning accuracy that the worse of the two curves reaches on average over seeds.
    """
    found: dict[int, dict[int, float]] = {}
    for size in sizes(frame):
        part = frame[frame["size"] == size]
        curves = [part[part["mitigation"].isin((*CURVES[rule], NEVER))] for rule in ("pretraining", "own")]
        target = 0.9 * min(float(curve.groupby("mitigation")["LA"].mean().max()) for curve in curves)
        for seed in part["seed"].unique():
            kept = [retention_at(c.loc[c["seed"] == seed, ["LA", "retention"]], target) for c in curves]
            found.setdefault(size, {})[int(seed)] = kept[0] - kept[1]
    return pd.DataFrame(found)


def least_damage(frame: pd.DataFrame) -> tuple[pd.Series, str]:
    """The damage by seed (mean over the numbers of examples) of the best rule that learns, and which it is of each."""
    damage, chosen = [], []
    for size in sizes(frame):
        means = frame[frame["size"] == size].groupby("mitigation", sort=False)[["LA", DAMAGE]].mean()
        learned = means[means["LA"] >= 0.9 * means["LA"][NEVER]]
        best = str(learned[DAMAGE].idxmin())
        damage.append(of_size(frame, best, size, DAMAGE))
        chosen.append(f"{size} examples: {best}")
    return pd.concat(damage, axis=1).mean(axis=1), "; ".join(chosen)


def conclude(results: Results) -> list[Verdict]:
    """Differences paired by seed; where no number of examples is named, of the means over all of them."""
    frame = cells(results)
    few, many = sizes(frame)[0], sizes(frame)[-1]

    def between(setting: str, column: str, first: int, second: int) -> Interval:
        before, after = (of_size(frame, setting, size, column) for size in (first, second))
        return paired_difference(before, after, "seeds")

    learned, kept = by_seed(frame, "LA"), by_seed(frame, "retention")
    fewer = between(NEVER, "LA", many, few)
    harm = between(NEVER, DAMAGE, many, few)
    grown = between(OWN, DAMAGE, few, many)
    free = paired_difference(learned[NEVER], learned[OWN], "seeds")
    own = paired_difference(kept[NEVER], kept[OWN], "seeds")
    text = paired_difference(kept[OWN], kept[PRETRAINING], "seeds")
    cost = paired_difference(learned[OWN], learned[PRETRAINING], "seeds")
    steps = by_seed(frame, "steps").mean()
    gains = matched(frame).mean(axis=1, skipna=False).to_numpy()
    if np.isnan(gains).any():
        at_matched = Verdict("matched", "undecided", "in some seed a curve does not reach the learning accuracy")
    else:
        gain = seed_interval(gains)
        at_matched = Verdict("matched", decide(gain), f"{told(gain)} more retained")
    least, chosen = least_damage(frame)
    rise = seed_interval(least.to_numpy())
    nats = "nats per token"
    return [
        Verdict("few_learn_less", decide_below(fewer), f"{told(fewer)} with {few} examples instead of {many}"),
        Verdict("few_forget_more", decide(harm), f"{told(harm, 1, nats)} more with {few} examples instead of {many}"),
        Verdict(
            "more_data_forgets", decide(grown), f"{told(grown, 1, nats)} more with {many} examples than with {few}"
        ),
        Verdict(
            "own_is_free", decide(free, -COST), f"{told(free)} more, after {steps[OWN]:.0f} of {steps[NEVER]:.0f} steps"
        ),
        Verdict("own_retains", decide(own), f"{told(own)} more retained"),
        Verdict(
            "pretraining_retains", decide(text), f"{told(text)} more retained, after {steps[PRETRAINING]:.0f} steps"
        ),
        Verdict("pretraining_costs", decide_below(cost), f"{told(cost)} more learned"),
        at_matched,
        Verdict("not_avoided", decide(rise, FORGOTTEN), f"{told(rise, 1, nats)} ({chosen})"),
    ]


def draw(results: Results, folder: Path) -> None:
    """Learning accuracy and damage over the number of examples, and all strengths with the fewest."""
    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    frame = cells(results)
    ticks, seeds = sizes(frame), frame["seed"].nunique()
    looks = {
        NEVER: ("black", "*", "all steps"),
        OWN: ("#0173b2", "o", "stopped by the task's own loss"),
        PRETRAINING: ("#de8f05", "s", "stopped by the pretraining loss"),
        CURVES["blind"][0]: ("#949494", "D", "few steps (a quarter, or a half)"),
    }
    shown = {"LA": (100, "learning accuracy LA (points)"), DAMAGE: (1, "rise of held-out loss (nats per token)")}
    with styled():
        canvas = new_canvas(9.0, 4.0)
        axes, handles = panels(canvas, 3, 3), []
        for setting, (color, marker, _) in looks.items():
            part = frame[frame["mitigation"] == setting]
            for axis, (column, (unit, label)) in zip(axes, shown.items(), strict=False):
                cells_of = {n: part.loc[part["size"] == n, column].to_numpy() for n in sizes(part)}
                found = {n: seed_interval(unit * values) for n, values in cells_of.items()}
                line = axis.errorbar(
                    list(found),
                    [i.mean for i in found.values()],
                    yerr=np.nan_to_num([i.half_width for i in found.values()]),
                    color=color,
                    marker=marker,
                    markersize=7 if marker == "*" else 4,
                    capsize=2,
                )
                axis.set_xscale("log", base=2)
                axis.set_xticks(ticks, [str(n) for n in ticks])
                axis.set_xlabel("training examples (log scale)")
                axis.set_ylabel(label)
            handles.append(line)
        fewest = frame[frame["size"] == ticks[0]].groupby("mitigation")[["LA", "retention"]].mean() * 100
        for setting, (color, marker, _) in looks.items():
            rule = next((rule for rule, settings in CURVES.items() if setting in settings), None)
            points = fewest.reindex((*CURVES[rule], NEVER) if rule else (NEVER,)).dropna().sort_values("retention")
            axes[2].plot(
                points["LA"],
                points["retention"],
                color=color,
                marker=marker,
                markersize=9 if not rule else 4,
                zorder=3 if not rule else 2,
            )
        axes[2].set_xlabel(f"LA with {ticks[0]} examples (points)")
        axes[2].set_ylabel("retention of capabilities (%)")
        legend_below(canvas, handles, [label for _, _, label in looks.values()])
        steps = next(iter(results.grids.values())).training.steps
        canvas.suptitle(f"{steps} steps whatever the number of examples; mean over n = {seeds} seeds")
        caption = (
            f"Mean over the tasks and n = {seeds} seeds, each with examples of its own; bars: 95% t interval over "
            "seeds. Right: all strengths of each rule; a line ends where training is not stopped. Left: few steps are "
            "a quarter."
        )
        save(canvas, folder, "data_size_and_epochs", "Few examples and early stopping", caption)


STUDY = Study("data_size_and_epochs", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
