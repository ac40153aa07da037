"""Does a low learning rate forget less, or only learn less? Rate × steps, and retention at matched learning accuracy.

Papers: Sun et al. 2019, How to Fine-Tune BERT for Text Classification, arXiv 1905.05583 (they put BERT's failure to
converge at a rate of 4e-4, and its success at 2e-5, down to forgetting, which they do not measure); Lin et al. 2025,
SFT Doesn't Always Hurt General Capabilities, arXiv 2509.20758 (a smaller rate keeps general capabilities at comparable
accuracy on the target). Command::

    forgetting study run learning_rate --scale laptop

The embedded decoder learns three tasks of micro-5 one after the other, at seven rates and four numbers of steps. Damage
is the rise of cross-entropy on held-out pretraining text after the last task, nats per token.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from forgetting.analysis.pareto import retention_at
from forgetting.analysis.stats import seed_interval
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Verdict, decide, decide_below, told

RATE = 1e-3
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
DAMAGE = "delta_CE:pretraining"
FLAT = 0.05
"""Nats per token: less is called no damage."""
LOW, HIGH = (0.1, 0.3), (1.0, 3.0)
"""Factors of the curves that are compared at matched learning accuracy: of as many points, or one would be favoured."""
CLAIMS = (
    Claim(
        "flat",
        f"At a hundredth of the base rate held-out loss rises by less than {FLAT} nats per token",
        "Sun et al. 2019, arXiv 1905.05583",
        "a rate of 2e-5 is said to overcome forgetting; measured was the target task",
    ),
    Claim(
        "rising",
        "At ten times the base rate held-out loss rises by more than at the base rate",
        "Sun et al. 2019, arXiv 1905.05583",
        "4e-4 fails to converge on the target task",
    ),
    Claim(
        "matched",
        "At matched learning accuracy a rate below the base rate retains more than the base rate and above",
        "Lin et al. 2025, arXiv 2509.20758",
        "smaller rates keep general capabilities at comparable accuracy on the target",
    ),
)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """One grid: rates × steps × seeds."""
    factors, fractions = ((0.01, 0.3, 1.0, 10.0), (1.0,)) if scale == "smoke" else (FACTORS, FRACTIONS)
    config = StudyConfig(
        name="learning_rate",
        sequence=SequenceConfig(name="micro-5", tasks=("new_facts", "routing", "second_language"), test_size=100),
        mitigations=tuple(f"low_lr:factor={f:g}+few_steps:fraction={s:g}" for f in factors for s in fractions),
        seeds=seeds_of(scale),
        training=TrainingConfig(learning_rate=RATE, steps=160, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(limit=100, drift_tokens=5000),
    )
    return {"rates": sized(config, scale, tasks=1)}


def cells(results: Results) -> pd.DataFrame:
    """The finished runs with their factor and share of steps."""
    frame = results.finished
    parts = frame["mitigation"].str.extract(r"factor=(?P<factor>[^+]+)\+few_steps:fraction=(?P<fraction>.+)")
    return frame.assign(factor=parts["factor"].astype(float), fraction=parts["fraction"].astype(float))


def matched(frame: pd.DataFrame) -> tuple[float, dict[int, float]]:
    """The learning accuracy where the two curves are compared, and by seed how much more the low rates retain there.

    It is nine tenths of what the worse of the two reaches on average over the seeds.
    """
    curves = [frame[frame["factor"].isin(factors)] for factors in (LOW, HIGH)]
    target = 0.9 * min(curve.groupby(["factor", "fraction"])["LA"].mean().max() for curve in curves)
    gains = {}
    for seed in frame["seed"].unique():
        low, high = (retention_at(curve.loc[curve["seed"] == seed, ["LA", "retention"]], target) for curve in curves)
        gains[int(seed)] = low - high
    return target, gains


def conclude(results: Results) -> list[Verdict]:
    """Damage at the ends, paired by seed, and the gain at matched learning accuracy."""
    frame = cells(results)
    full = frame[frame["fraction"] == 1.0].pivot(index="seed", columns="factor", values=DAMAGE)
    flat = seed_interval(full[FACTORS[0]].to_numpy(), level=0.9)
    rising = seed_interval((full[10.0] - full[1.0]).to_numpy())
    target, gains = matched(frame)
    values = np.array(list(gains.values()))
    if np.isnan(values).any():
        last = Verdict("matched", "undecided", f"in some seed a curve does not reach LA {100 * target:.0f}")
    else:
        gain = seed_interval(values)
        last = Verdict("matched", decide(gain), f"{told(gain)} more retained at LA {100 * target:.0f}")
    return [
        Verdict("flat", decide_below(flat, FLAT), told(flat, 1, "nats per token")),
        Verdict("rising", decide(rising), told(rising, 1, "nats per token more")),
        last,
    ]


def draw(results: Results, folder: Path) -> None:
    """Damage, learning accuracy and retention over the rate; a line per number of steps."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    frame = cells(results)
    steps = results.grids["rates"].training.steps
    assert steps is not None
    shown = {DAMAGE: (1, "rise of held-out loss (nats per token)"), "LA": (100, "learning accuracy LA (points)")}
    shown["retention"] = (100, "retention of capabilities (%)")
    fractions = sorted(frame["fraction"].unique())
    colors = seaborn.color_palette("viridis", len(fractions))
    with styled():
        canvas = new_canvas(9.0, 3.4)
        handles = []
        for axis, (column, (unit, label)) in zip(panels(canvas, 3, 3), shown.items(), strict=True):
            for fraction, color, marker in zip(fractions, colors, "os^D", strict=False):
                intervals = [
                    (factor * RATE, seed_interval(unit * part[column].to_numpy()))
                    for factor, part in frame[frame["fraction"] == fraction].groupby("factor")
                ]
                rates = [rate for rate, _ in intervals]
                line = axis.plot(rates, [i.mean for _, i in intervals], color=color, marker=marker, markersize=4)[0]
                axis.fill_between(
                    rates, [i.low for _, i in intervals], [i.high for _, i in intervals], color=color, alpha=0.15, lw=0
                )
                handles.append(line)
            axis.set_xscale("log")
            axis.set_xlabel("peak learning rate")
            axis.set_ylabel(label)
        seeds = frame["seed"].nunique()
        legend_below(canvas, handles[: len(fractions)], [f"{round(f * steps)} steps per task" for f in fractions])
        canvas.suptitle(f"Learning rate × steps; mean and 95% t interval over n = {seeds} seeds")
        caption = f"Mean over n = {seeds} seeds; bands: 95% t interval over seeds."
        save(canvas, folder, "learning_rate", "Learning rate × steps", caption)


STUDY = Study("learning_rate", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
