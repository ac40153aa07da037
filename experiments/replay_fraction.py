"""How much pretraining text must be replayed: is 1% enough, and does the injection law tell in advance?

Papers: Bethune et al. 2025, Scaling Laws for Forgetting during Finetuning with Pretraining Data Injection, arXiv
2502.06042 (the law, and 1%); Huang et al. 2024, Mitigating Catastrophic Forgetting in Large Language Models with
Self-Synthesized Rehearsal, arXiv 2403.01244 (text of the model's own). Commands::

    forgetting micro pretrain --size 300k --output results/models/micro-300k
    forgetting micro pretrain --size 4M --output results/models/micro-4M
    forgetting study run replay_fraction --scale laptop

``law-*``: one epoch over D examples of a new domain (an invented language), six shares of replayed pretraining text,
models of three sizes; damage is the rise of cross-entropy on held-out pretraining text, nats per token. ``shift-*``:
the same share on a domain close to pretraining, a new one, and one that contradicts it, with a control that has as many
steps as replay but padding in its place. ``self``: replayed text is sampled from the base model.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from forgetting.analysis.laws import fit_injection, leave_one_group_out
from forgetting.analysis.stats import Interval, seed_interval
from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Verdict, decide, decide_below, decide_within, told

MODELS = {"300k": "results/models/micro-300k", "1M": "micro", "4M": "results/models/micro-4M"}
SIZES = (128, 512, 2000)
FRACTIONS = (0.0, 0.001, 0.005, 0.01, 0.05, 0.25)
SHIFTS = {"mild": ("micro-similar", "new_people"), "new": ("micro-5", "second_language")}
SHIFTS["conflict"] = ("micro-conflict", "changed_facts")
DAMAGE = "delta_CE:pretraining"
ENOUGH = 0.05
"""Nats per token: a smaller rise is called no forgetting."""
LIKE = 0.05
"""Retention: a smaller difference is called none."""
NAIVE, MOST = "naive", "replay:fraction=0.25"
CONTROL = f"{MOST},equal_steps=true"
BETHUNE = "Bethune et al. 2025, arXiv 2502.06042"
CLAIMS = (
    Claim(
        "law",
        "The injection law, fitted without a cell, predicts its damage with less error than the same law without "
        "injection (B = 0)",
        BETHUNE,
        "the law predicts unseen settings",
    ),
    *(
        Claim(
            f"one_percent_{shift}",
            f"With 1% of replay held-out loss rises by less than {ENOUGH} nats per token ({told_shift})",
            BETHUNE,
            "as little as 1% prevents forgetting",
        )
        for shift, told_shift in (
            ("mild", "a domain close to pretraining"),
            ("new", "a new domain"),
            ("conflict", "a domain that contradicts pretraining"),
        )
    ),
    Claim(
        "self",
        f"Replay of text sampled from the model retains as much as replay of real text (within {100 * LIKE:g} points)",
        "Huang et al. 2024, arXiv 2403.01244",
        "superior or comparable to conventional rehearsal",
    ),
    Claim(
        "not_the_steps",
        "Replay retains more than as many steps with padding in its place",
        "control",
    ),
)


def _replay(fraction: float) -> str:
    return f"replay:fraction={fraction:g}" if fraction else NAIVE


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """``law-<model>-<D>``, ``shift-<kind>``, ``self``."""
    smoke = scale == "smoke"
    models, sizes, fractions = ({"1M": "micro"}, (16, 48), (0.0, 0.01, 0.25)) if smoke else (MODELS, SIZES, FRACTIONS)

    def grid(
        name: str, shift: str, mitigations: tuple[str, ...], size: int, model: str = "micro", source: str = "micro"
    ) -> StudyConfig:
        sequence, task = SHIFTS[shift]
        config = StudyConfig(
            name=f"replay_fraction-{name}",
            model=model,
            sequence=SequenceConfig(name=sequence, tasks=(task,), train_size=size, validation_size=8, test_size=100),
            mitigations=mitigations,
            seeds=seeds_of(scale),
            training=TrainingConfig(learning_rate=1e-3, epochs=1, batch_size=16, max_length=128),
            evaluation=EvaluationConfig(limit=100, drift_tokens=5000),
            pretraining=PretrainingConfig(source=source, documents=1000, held_out_documents=200),
        )
        text = {"documents": 8, "held_out_documents": 4}
        return sized(config, scale, sequence={"train_size": size}, pretraining=text)

    law = {
        f"law-{label}-{size}": grid(f"{label}-{size}", "new", tuple(map(_replay, fractions)), size, model)
        for label, model in models.items()
        for size in sizes
    }
    shares = (NAIVE, "replay:fraction=0.01", MOST, CONTROL)
    shift = {
        # Of the new domain, the law's grid already has all but the control.
        f"shift-{kind}": grid(kind, kind, (CONTROL,) if kind == "new" else shares, sizes[-1])
        for kind in SHIFTS
    }
    return law | shift | {"self": grid("self", "new", (MOST,), sizes[-1], source="self")}


def law_points(results: Results) -> pd.DataFrame:
    """A row per run of ``law-*``: D examples, N parameters, p replayed share as realised, and the damage."""
    frame = results.finished
    frame = frame[frame["grid"].str.startswith("law-")]
    size = frame["grid"].str.rsplit("-", n=1).str[-1].astype(float)
    return frame.assign(D=size, N=frame["parameters"], p=frame["replay_share"])


def law_error(points: pd.DataFrame) -> float:
    """Error of the law on left-out cells, over that of the law with B = 0; NaN where one cannot be fitted.

    A cell is a model, a D and a number of replayed examples: two shares that gave the same number are one cell.
    """
    data = {"loss": points[DAMAGE].to_numpy(), "D": points["D"].to_numpy(), "N": points["N"].to_numpy()}
    data |= {"p": points["p"].to_numpy(), "base": np.zeros(len(points))}
    cells = [f"{row.grid} {row.p:.6f}" for row in points.itertuples()]
    laws = (fit_injection, partial(fit_injection, fixed={"B": 0.0}))
    try:
        errors = [leave_one_group_out(law, data, target="loss", groups=cells, extrapolate=True) for law in laws]
    except ValueError:
        return math.nan
    return errors[0].pooled.rmse / errors[1].pooled.rmse


def by_seed(results: Results, grid: str, mitigation: str, column: str) -> pd.Series:
    """A column of one mitigation's runs, by seed."""
    frame = results.finished
    rows = frame[(frame["grid"] == grid) & (frame["mitigation"] == mitigation)]
    return rows.set_index("seed")[column].sort_index()


def shifted(results: Results, shift: str, mitigation: str, column: str) -> pd.Series:
    """A column by seed, of a mitigation's runs on the most examples of a domain."""
    size = results.grids["shift-new"].sequence.train_size
    grid = f"law-1M-{size}" if shift == "new" and mitigation != CONTROL else f"shift-{shift}"
    return by_seed(results, grid, mitigation, column)


def conclude(results: Results) -> list[Verdict]:
    """The law's error by seed; 1% by equivalence; the others paired by seed."""
    points = law_points(results)
    errors = [law_error(part) for _, part in points.groupby("seed")]
    if np.isnan(errors).any():
        law = Verdict("law", "undecided", "the law cannot be fitted to these cells")
    else:
        ratio = seed_interval(errors)
        law = Verdict("law", decide_below(ratio, 1.0), told(ratio, 1, "of its error without injection"))
    verdicts = [law]
    for shift in SHIFTS:
        rise = seed_interval(shifted(results, shift, "replay:fraction=0.01", DAMAGE), level=0.9)
        naive = seed_interval(shifted(results, shift, NAIVE, DAMAGE))
        numbers = f"{told(rise, 1, 'nats per token')}; naive {naive.mean:.3g}"
        verdicts.append(Verdict(f"one_percent_{shift}", decide_below(rise, ENOUGH), numbers))
    real = shifted(results, "new", MOST, "retention")
    own = seed_interval((by_seed(results, "self", MOST, "retention") - real).to_numpy(), level=0.9)
    control = seed_interval((real - shifted(results, "new", CONTROL, "retention")).to_numpy())
    return [
        *verdicts,
        Verdict("self", decide_within(own, LIKE), told(own, 100, "points more than real text")),
        Verdict("not_the_steps", decide(control), told(control, 100, "points more than the control")),
    ]


def draw(results: Results, folder: Path) -> None:
    """Damage over the replayed share, a panel per model size and a line per D; and at 1% by shift."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    points = law_points(results)
    models = sorted(points["N"].unique())
    sizes = sorted(points["D"].unique())
    colors = seaborn.color_palette("viridis", len(sizes))
    seeds = points["seed"].nunique()
    with styled():
        canvas = new_canvas(3.0 * (len(models) + 1), 3.4)
        axes = panels(canvas, len(models) + 1, len(models) + 1)
        handles = []
        for axis, model in zip(axes, models, strict=False):
            for size, color, marker in zip(sizes, colors, "os^", strict=False):
                part = points[(points["N"] == model) & (points["D"] == size)]
                cells = [(float(c["p"].mean()), seed_interval(c[DAMAGE])) for _, c in part.groupby("mitigation")]
                cells.sort(key=lambda cell: cell[0])
                shares = [100 * share for share, _ in cells]
                handles.append(_line(axis, shares, [interval for _, interval in cells], color, marker))
            axis.set_xscale("symlog", linthresh=0.1)
            axis.set_xlabel("replayed share of examples (%)")
            axis.set_ylabel("rise of held-out loss (nats per token)")
            axis.set_title(f"{model:,.0f} parameters")
        shown = {NAIVE: "naive", "replay:fraction=0.01": "1%", MOST: "25%", CONTROL: "25%,\ncontrol"}
        for place, (shift, color) in enumerate(zip(SHIFTS, seaborn.color_palette("colorblind", 3), strict=True)):
            values = [shifted(results, shift, text, DAMAGE) for text in shown]
            there = [(i + 0.12 * (place - 1), seed_interval(v.to_numpy())) for i, v in enumerate(values) if len(v)]
            _errorbars(axes[-1], [x for x, _ in there], [interval for _, interval in there], color, shift)
        axes[-1].set_xticks(range(len(shown)), list(shown.values()))
        axes[-1].set_ylabel("rise of held-out loss (nats per token)")
        axes[-1].set_title(f"by shift, D = {results.grids['shift-new'].sequence.train_size}")
        axes[-1].legend(frameon=False)
        legend_below(canvas, handles[: len(sizes)], [f"D = {size:g} examples" for size in sizes])
        canvas.suptitle(f"Replayed share of pretraining text; mean and 95% t interval over n = {seeds} seeds")
        caption = f"Mean over n = {seeds} seeds; bands and bars: 95% t interval over seeds. The share is as realised."
        save(canvas, folder, "replay_fraction", "Replayed share of pretraining text", caption)


def _line(axis, x: list[float], intervals: list[Interval], color, marker: str):  # type: ignore[no-untyped-def]
    line = axis.plot(x, [i.mean for i in intervals], color=color, marker=marker, markersize=4)[0]
    axis.fill_between(x, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.15, lw=0)
    return line


def _errorbars(axis, x: list[float], intervals: list[Interval], color, label: str) -> None:  # type: ignore[no-untyped-def]
    bars = np.nan_to_num([i.half_width for i in intervals])
    axis.errorbar(
        x, [i.mean for i in intervals], yerr=bars, color=color, marker="o", linestyle="none", capsize=2, label=label
    )


STUDY = Study("replay_fraction", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
