"""When is it lost, is it gone, and which layers to freeze? Spurious forgetting in the embedded world.

Paper: Zheng et al. 2025, Spurious Forgetting in Continual Learning of Language Models, arXiv 2501.13453. Command::

    forgetting study run freezing --scale laptop

When: the embedded decoder learns new facts at a constant rate, so that a run of fewer steps is the beginning of a
longer one. Gone: then it practises facts of half of the people that it knew, and is asked about the other half; the
control practises the same form with new people. Which: layers are frozen while two tasks of micro-5 are learned, every
choice over its own rates, and compared at the same learning accuracies.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forgetting.analysis.pareto import matched_gain
from forgetting.analysis.stats import Interval, seed_interval
from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.micro.domains import PRACTISED
from forgetting.micro.probes import load_probe
from forgetting.micro.world import build_world
from forgetting.studies import Results, Scale, Study, main
from forgetting.verdicts import Claim, Verdict, decide, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 160
TENTH = 0.1
LOOKS: dict[Scale, tuple[float, ...]] = {
    "smoke": (TENTH,),
    "laptop": (0.025, 0.05, TENTH, 0.2, 0.4),
    "gpu": (0.0125, 0.025, 0.05, TENTH, 0.2, 0.3, 0.4, 0.6, 0.8),
}
"""Shares of STEPS after which is looked, besides the whole."""
RATES: dict[Scale, tuple[float, ...]] = {"smoke": (1.0,), "laptop": (0.3, 1.0, 3.0), "gpu": (0.1, 0.3, 0.6, 1.0, 3.0)}
LOWER, UPPER = "freeze:first=2,embeddings=true+", "freeze:pattern=layers.[23]+"
CHOICES = {
    "": "nothing",
    "freeze:embeddings=true+": "embeddings",
    "freeze:first=1,embeddings=true+": "embeddings, block 1",
    LOWER: "embeddings, blocks 1–2",
    "freeze:first=3,embeddings=true+": "embeddings, blocks 1–3",
    UPPER: "blocks 3–4",
}
"""What is frozen of the four blocks, by the mitigation's beginning."""
PROBE = "micro_facts"
ZHENG = "Zheng et al. 2025, arXiv 2501.13453"
CLAIMS = (
    Claim(
        "early",
        "More than half of the retention that a new task costs is lost in the first tenth of its steps",
        ZHENG,
        "accuracy on the earlier task collapses in the first 150 steps of the next",
    ),
    Claim(
        "recovered",
        "Practising half of the known people for a tenth of the steps wins back more than half of what was lost on the "
        "other half",
        ZHENG,
        "accuracy on the earlier task recovers to 96%",
    ),
    Claim(
        "form",
        "The same steps on new people, in the same form, win back some of what was lost on known ones",
        ZHENG,
        "what declines is the alignment to the task, not the knowledge",
    ),
    Claim(
        "lower",
        "At the same learning accuracies, freezing embeddings and the lower half of the blocks retains more than "
        "freezing nothing",
        ZHENG,
        "accuracy on the earlier task 44.22% with frozen lower layers, 11.18% without (Biography, two tasks)",
    ),
    Claim(
        "which",
        "At the same learning accuracies, freezing embeddings and the lower half of the blocks retains more than "
        "freezing the upper half",
        ZHENG,
    ),
)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """When it is lost; practice of known and of new people, after it; frozen layers × rates."""
    smoke = scale == "smoke"

    def study(
        name: str, sequence: str, tasks: tuple[str, ...], mitigations: tuple[str, ...], steps: int, constant: bool
    ) -> StudyConfig:
        return StudyConfig(
            name=f"freezing-{name}",
            sequence=SequenceConfig(
                name=sequence, tasks=tasks, train_size=32 if smoke else None, test_size=8 if smoke else 100
            ),
            mitigations=mitigations,
            seeds=(0,) if smoke else tuple(range(10 if scale == "gpu" else 3)),
            training=TrainingConfig(
                learning_rate=1e-3,
                steps=3 if smoke else steps,
                batch_size=16,
                max_length=128,
                scheduler="constant" if constant else "linear",
                warmup=0.0 if constant else 0.05,
            ),
            evaluation=EvaluationConfig(limit=8 if smoke else 100, drift=False),
            pretraining=PretrainingConfig(documents=16, held_out_documents=16) if smoke else PretrainingConfig(),
        )

    looks = LOOKS[scale]
    when = tuple(f"few_steps:fraction={share:g}" for share in (*looks, 1.0))
    practice = tuple(f"few_steps:fraction={share:g},after=1" for share in looks[:-1] or looks)
    choices = ("", LOWER, UPPER) if smoke else CHOICES
    frozen = tuple(f"{choice}low_lr:factor={factor:g}" for choice in choices for factor in RATES[scale])
    learned = ("new_facts",) if smoke else ("new_facts", "second_language")
    return {
        "when": study("when", "micro-relearn", ("new_facts",), when, STEPS, True),
        "known": study("known", "micro-relearn", ("new_facts", "known_facts"), practice, STEPS, True),
        "new": study("new", "micro-relearn", ("new_facts", "new_people"), practice, STEPS, True),
        "layers": study("layers", "micro-5", learned, frozen, STEPS // 2, False),
    }


def lost(results: Results) -> pd.DataFrame:
    """What of retention is lost: a row per seed, a column per share of the steps."""
    frame = results.finished[results.finished["grid"] == "when"]
    share = frame["mitigation"].str.extract(r"fraction=([^,]+)")[0].astype(float)
    return frame.assign(share=share, lost=1 - frame["retention"]).pivot(index="seed", columns="share", values="lost")


def asked(results: Results, grid: str) -> pd.DataFrame:
    """Accuracy on the facts of people that were not practised: a row per seed and share of the steps.

    Columns: ``base``, ``tuned`` (before practice) and ``after`` it.
    """
    world, scored = build_world(), results.grids[grid].evaluation
    practised = set(world.people[PRACTISED])
    items = load_probe(PROBE)[scored.offset :][: scored.limit]
    others = np.array([practised.isdisjoint(item.context.split()) for item in items])
    rows = []
    for record in results.records(grid):
        stored = results.store(grid).load_items(record.run_id)["G"]
        base, tuned, after = (float(np.array(row[PROBE])[others].mean()) for row in stored)
        share = float(record.config.mitigation.split("=")[1].split(",")[0])
        rows.append({"seed": record.config.seed, "share": share, "base": base, "tuned": tuned, "after": after})
    return pd.DataFrame(rows)


def curve(results: Results, choice: str) -> pd.DataFrame:
    """Seed, factor of the rate, LA and retention with some layers frozen."""
    frame = results.finished[results.finished["grid"] == "layers"]
    own = frame["mitigation"].str.partition("low_lr:factor=")
    rows = frame[own[0] == choice]
    return rows[["seed", "LA", "retention"]].assign(factor=own[2][own[0] == choice].astype(float))


def gain(results: Results, choice: str, reference: str) -> Interval:
    """What one choice retains more than another, paired by seed: from half of what is gained with nothing frozen."""
    bases = {record.config.seed: float(np.mean(record.R[0])) for record in results.records("layers")}
    gains = []
    for seed, base in bases.items():
        one, other, whole = (
            part.loc[part["seed"] == seed, ["LA", "retention"]]
            for part in (curve(results, name) for name in (choice, reference, ""))
        )
        gains.append(matched_gain(one, other, (base + whole["LA"].max()) / 2))
    return seed_interval(gains)


def conclude(results: Results) -> list[Verdict]:
    """Differences by seed, none a ratio: a half is won back where twice the gain is more than the loss."""
    losses = lost(results)
    early = seed_interval((losses[TENTH] - losses[1.0] / 2).to_numpy())
    known, new = (part[part["share"] == TENTH] for part in (asked(results, "known"), asked(results, "new")))
    half = seed_interval((known["after"] - (known["tuned"] + known["base"]) / 2).to_numpy())
    form = seed_interval((new["after"] - new["tuned"]).to_numpy())
    lower, which = gain(results, LOWER, ""), gain(results, LOWER, UPPER)
    whole, damage = losses.mean(), float((known["base"] - known["tuned"]).mean())
    return [
        Verdict(
            "early",
            decide(early),
            f"{told(early)} more than half; lost: {100 * whole[TENTH]:.3g}, in the end {100 * whole[1.0]:.3g} points",
        ),
        Verdict("recovered", decide(half), f"{told(half)} above half way back; lost were {100 * damage:.3g} points"),
        Verdict("form", decide(form), f"{told(form)} won back; lost were {100 * damage:.3g} points"),
        Verdict("lower", decide(lower), f"{told(lower)} more retained"),
        Verdict("which", decide(which), f"{told(which)} more retained"),
    ]


def _band(axis: Axes, at: Any, intervals: list[Interval], color: Any, marker: str, label: str = "") -> None:
    axis.plot(at, [i.mean for i in intervals], color=color, marker=marker, markersize=4, label=label)
    axis.fill_between(at, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.2, lw=0)


def draw(results: Results, folder: Path) -> None:
    """Retention over steps, accuracy over practice, and retention over learning accuracy by what is frozen."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    if set(results.grids) - set(results.finished["grid"]):
        return
    steps = results.grids["when"].training.steps or 1
    seeds = results.finished["seed"].nunique()
    colors = seaborn.color_palette("colorblind")
    losses, practice = lost(results), {grid: asked(results, grid) for grid in ("known", "new")}
    with styled():
        canvas = new_canvas(9.0, 3.8)
        when, gone, which = panels(canvas, 3, 3)
        kept = [seed_interval(100 * (1 - losses[share]).to_numpy()) for share in losses]
        _band(when, steps * losses.columns.to_numpy(dtype=float), kept, colors[4], "o")
        when.axhline(100, color="black", linestyle=":", linewidth=1)
        when.set_xscale("log")
        when.set_xlabel("steps on the new task")
        when.set_ylabel("retention of capabilities (%)")
        for (grid, label), color, marker in zip(
            (("known", "other known people"), ("new", "new people")), (colors[0], colors[3]), "os", strict=True
        ):
            table = practice[grid].pivot(index="seed", columns="share", values="after")
            start = practice[grid].groupby("seed")["tuned"].first()
            scores = [seed_interval(100 * score.to_numpy()) for score in (start, *(table[share] for share in table))]
            _band(gone, steps * np.array([0.0, *table.columns]), scores, color, marker, f"practice: {label}")
        gone.axhline(100 * practice["known"]["base"].mean(), color="black", linestyle=":", linewidth=1)
        gone.set_xlabel("steps of practice after it")
        gone.set_ylabel("accuracy on unpractised people (points)")
        gone.legend()
        handles, labels = [], []
        for (choice, label), color, marker in zip(CHOICES.items(), ["black", *colors], "*os^Dv", strict=False):
            mean = 100 * curve(results, choice).groupby("factor")[["LA", "retention"]].mean()
            handles += which.plot(mean["LA"], mean["retention"], color=color, marker=marker, markersize=4)
            labels.append(f"frozen: {label}")
        which.set_xlabel("learning accuracy LA (points)")
        which.set_ylabel("retention of capabilities (%)")
        legend_below(canvas, handles, labels)
        canvas.suptitle(f"When it is lost, whether it is gone, and what to freeze; means over n = {seeds} seeds")
        caption = (
            f"Means over n = {seeds} seeds; bands: 95% t interval over seeds; dotted: the base model. Right: a point "
            "per learning rate."
        )
        save(canvas, folder, "freezing", "When it is lost, whether it is gone, and what to freeze", caption)


STUDY = Study("freezing", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
