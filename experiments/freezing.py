"""When is it lost, is it gone, and which layers to freeze? Spurious forgetting in the embedded world.

Paper: Zheng et al. 2025, Spurious Forgetting in Continual Learning of Language Models, arXiv 2501.13453. Command::

    forgetting study run freezing --scale laptop

When: the embedded decoder learns new facts at a constant rate, so that a run of fewer steps is the beginning of a
longer one; of each seed the whole training is repeated, and looked at every few steps. Gone: then it practises facts of
half of the people that it knew, and is asked about the other half; the control practises the same form with new people.
Which: layers are frozen while two tasks of micro-5 are learned, every choice over its own rates, and compared at the
same learning accuracies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forgetting.analysis.onset import Onset, onset
from forgetting.analysis.pareto import matched_gain
from forgetting.analysis.stats import Interval, seed_interval
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.micro.domains import PRACTISED
from forgetting.micro.probes import load_probe
from forgetting.micro.world import build_world
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Verdict, decide, decide_below, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from forgetting.config import RunConfig

STEPS = 160
TENTH = 0.1
LOOKS: dict[Scale, tuple[float, ...]] = {
    "smoke": (TENTH,),
    "laptop": (0.025, 0.05, TENTH, 0.2, 0.4),
    "gpu": (0.0125, 0.025, 0.05, TENTH, 0.2, 0.3, 0.4, 0.6, 0.8),
}
"""Shares of STEPS after which is looked, besides the whole."""
DENSE = {"looks": 40, "texts": 64, "items": 100}
"""Of the repeated training: looks (at most one per step), held-out documents, and items of the probe."""
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
        "onset",
        "Half of what the loss on held-out pretraining text rises by in the end is there within the first tenth of the "
        "steps",
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
        config = StudyConfig(
            name=f"freezing-{name}",
            sequence=SequenceConfig(name=sequence, tasks=tasks, test_size=100),
            mitigations=mitigations,
            seeds=seeds_of(scale),
            training=TrainingConfig(
                learning_rate=1e-3,
                steps=steps,
                batch_size=16,
                max_length=128,
                scheduler="constant" if constant else "linear",
                warmup=0.0 if constant else 0.05,
            ),
            evaluation=EvaluationConfig(limit=100, drift=False),
        )
        text = {"documents": 16, "held_out_documents": 16}
        return sized(config, scale, evaluation={"limit": 8}, pretraining=text)

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


def traced(results: Results) -> dict[str, RunConfig]:
    """The whole training of each seed, by the name of its measurement."""
    runs = results.grids["when"].runs()
    return {f"trace-{run.seed}": run for run in runs if run.mitigation == "few_steps:fraction=1"}


def traces(results: Results) -> dict[str, Callable[[], dict[str, Any]]]:
    """Measurements: the trainings once more, with the looks that runs do not keep."""
    return {name: partial(trace, results, run) for name, run in traced(results).items()}


def trace(results: Results, run: RunConfig) -> dict[str, Any]:
    """By column the step, the loss on held-out pretraining text (``ce``, nats per token), and the probe's accuracy."""
    from forgetting.evaluation.suite import load_suite
    from forgetting.evaluation.trace import ScoreAtSteps, cheap_scores, trace_table
    from forgetting.mitigations import build_mitigation
    from forgetting.run import prepare, run_context, train_task
    from forgetting.tasks.pretraining import OWN

    setting = prepare(run, results.store("when"))
    context, mitigation = run_context(run, setting), build_mitigation(run.mitigation)
    features = context.encode_text(setting.pretraining.held_out[OWN][: DENSE["texts"]])
    limit = min(DENSE["items"], run.evaluation.limit or DENSE["items"])
    score = cheap_scores(features, setting.base.tokenizer, load_suite([PROBE], limit=limit))
    steps = run.training.steps or 1
    looks = ScoreAtSteps(score, range(0, steps + 1, max(1, steps // DENSE["looks"])))
    model = mitigation.setup(copy.deepcopy(setting.base.model), context)
    train_task(run, setting, mitigation, model, 0, lambda step, steps: None, callbacks=[looks])
    return {str(column): values.tolist() for column, values in trace_table(looks.points).items()}


def onsets(results: Results) -> dict[str, list[Onset | None]]:
    """Per seed, when half of the final loss was there: of the loss on text, and of accuracy on known facts."""
    found = [results.measured(name) for name in traced(results)]
    return {
        "ce": [onset(one["step"], one["ce"]) for one in found],
        PROBE: [onset(one["step"], [-accuracy for accuracy in one[PROBE]]) for one in found],
    }


def decide_onset(results: Results) -> Verdict:
    """The looks before and at which half was reached bound the step; the later one counts."""
    steps, found = results.grids["when"].training.steps or 1, onsets(results)
    by = {name: [one.by for one in each if one is not None] for name, each in found.items()}
    facts = f"of known facts' accuracy by step {np.mean(by[PROBE]):.3g}" if by[PROBE] else "known facts lost nothing"
    if None in found["ce"]:
        rose = f"{len(by['ce'])} of {len(found['ce'])} seeds"
        return Verdict("onset", "undecided", f"the loss on pretraining text rose in {rose}; {facts}")
    reached = seed_interval([float(step) for step in by["ce"]])
    outcome = decide_below(reached, TENTH * steps)
    return Verdict("onset", outcome, f"half by step {told(reached, 1, f'of {steps}')}; {facts}")


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
        decide_onset(results),
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

    measured = all(results.measured_path(name).exists() for name in traced(results))
    if set(results.grids) - set(results.finished["grid"]) or not measured:
        return
    steps = results.grids["when"].training.steps or 1
    seeds = results.finished["seed"].nunique()
    colors = seaborn.color_palette("colorblind")
    losses, practice = lost(results), {grid: asked(results, grid) for grid in ("known", "new")}
    with styled():
        canvas = new_canvas(11.5, 3.8)
        when, dense, gone, which = panels(canvas, 4, 4)
        kept = [seed_interval(100 * (1 - losses[share]).to_numpy()) for share in losses]
        _band(when, steps * losses.columns.to_numpy(dtype=float), kept, colors[4], "o")
        when.axhline(100, color="black", linestyle=":", linewidth=1)
        when.set_xscale("log")
        when.set_xlabel("steps on the new task")
        when.set_ylabel("retention of capabilities (%)")
        looked = [results.measured(name) for name in traced(results)]
        rises = np.array([np.subtract(one["ce"], one["ce"][0]) for one in looked])
        _band(dense, looked[0]["step"], [seed_interval(rise) for rise in rises.T], colors[4], ".")
        dense.axvline(TENTH * steps, color="black", linestyle=":", linewidth=1)
        dense.set_xlabel("steps on the new task")
        dense.set_ylabel("rise of the loss on held-out\npretraining text (nats/token)")
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
            f"Means over n = {seeds} seeds; bands: 95% t interval over seeds; dotted: the base model; of the rise, "
            "a tenth of the steps. Right: a point per learning rate."
        )
        save(canvas, folder, "freezing", "When it is lost, whether it is gone, and what to freeze", caption)


STUDY = Study("freezing", CLAIMS, grids, conclude, draw, measure=traces, measured_with=DENSE)

if __name__ == "__main__":
    main(STUDY, __doc__)
