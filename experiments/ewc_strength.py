"""Does a better Fisher make a better EWC? Whole curves over strength, by estimator, beside L2-SP and naive's rates.

Papers: van de Ven 2025, On the Computation of the Fisher Information in Continual Learning, arXiv 2502.11756;
Kirkpatrick et al. 2017, Overcoming catastrophic forgetting in neural networks, arXiv 1612.00796. Command::

    forgetting study run ewc_strength --scale laptop

The embedded decoder learns two tasks of micro-5 under EWC, whose first Fisher is that of the pretrained state; L2-SP is
the same penalty without knowledge of what matters. Every curve begins at strength 0, which is naive fine-tuning.
Compared is the mean retention over the same learning accuracies: from half of what naive gains to what both reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forgetting.analysis.pareto import matched_gain
from forgetting.analysis.stats import seed_interval
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Outcome, Verdict, decide, decide_within, told

DAMAGE = "delta_CE:pretraining"
ESTIMATORS = ("sample", "empirical", "batched", "positionwise")
FIRST = {"sample": 1e2, "empirical": 1e2, "batched": 1e3, "positionwise": 1e2}
"""λ where each estimator's range begins; it spans four decades."""
FACTORS: dict[Scale, tuple[float, ...]] = {
    "smoke": (1.0,),
    "laptop": (0.1, 0.2, 0.4, 0.7, 1.0, 2.0),
    "gpu": (0.03, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 2.0),
}
"""Of naive's rate: its curve has as many points as each of the others, of which 0 is one, or one would be favoured."""
MARGIN = 0.02
"""Retention within two points is called the same."""
FACTOR = 10.0
CLAIMS = (
    Claim(
        "protects",
        "At the same learning accuracies EWC retains more than naive fine-tuning does over its own rates",
        "van de Ven 2025, arXiv 2502.11756",
        "accuracy after Split MNIST 99.12 ± 0.12 against 85.41 ± 0.88 naive, Split CIFAR-10 83.77 ± 0.72 against "
        "69.53 ± 1.34 (± s.e., sampled labels, best λ)",
    ),
    Claim(
        "fisher",
        "At the same learning accuracies EWC retains more than L2-SP, which weighs all parameters alike",
        "Kirkpatrick et al. 2017, arXiv 1612.00796",
        "on permuted MNIST the same penalty on all weights keeps a new task from being learned, EWC does not",
    ),
    Claim(
        "equal",
        f"Empirical, batched and positionwise Fisher each retain within {100 * MARGIN:g} points of what sampled labels "
        "do at the same learning accuracies",
        "van de Ven 2025, arXiv 2502.11756",
        "best λ each, Split MNIST: 99.12 sampled, 99.12 empirical, 99.11 batched; Split CIFAR-10: 83.77, 83.28, 83.38",
    ),
    Claim(
        "scale",
        f"To halve the rise of held-out loss, batched Fisher needs more than {FACTOR:g} times the λ of sampled labels",
        "van de Ven 2025, arXiv 2502.11756",
        "a λ larger by orders of magnitude, with batches of 128; ours hold 16",
    ),
)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """One grid: estimators × strengths, L2-SP's strengths and naive's rates."""
    count = {"smoke": 1, "laptop": 5, "gpu": 9}[scale]
    ewc = [
        f"ewc:estimator={name},strength={strength:.0f}"
        for name in ESTIMATORS
        for strength in FIRST[name] * np.logspace(0, 4, count)
    ]
    l2sp = [f"l2sp:strength={strength:.3g}" for strength in np.geomspace(1, 256, count)]
    rates = [f"low_lr:factor={factor:g}" for factor in FACTORS[scale]]
    config = StudyConfig(
        name="ewc_strength",
        sequence=SequenceConfig(name="micro-5", tasks=("new_facts", "second_language"), test_size=100),
        mitigations=(*rates, *ewc, *l2sp),
        seeds=seeds_of(scale),
        training=TrainingConfig(learning_rate=1e-3, steps=80, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(limit=100, drift_tokens=5000),
    )
    text = {"documents": 16, "held_out_documents": 16}
    return {"strengths": sized(config, scale, tasks=1, pretraining=text)}


def curves(results: Results) -> dict[str, pd.DataFrame]:
    """By method: seed, strength (naive's is its factor), LA, retention and DAMAGE; a penalty's strength 0 is naive."""
    frame = results.finished
    parts = frame["mitigation"].str.extract(r"^(?P<method>\w+):(?:estimator=(?P<estimator>\w+),)?\w+=(?P<strength>.+)$")
    frame = frame.assign(
        method=parts["estimator"].fillna(parts["method"]).replace("low_lr", "naive"),
        strength=parts["strength"].astype(float),
    )
    kept = frame[["method", "seed", "strength", "LA", "retention", DAMAGE]]
    unpenalised = kept[(kept["method"] == "naive") & (kept["strength"] == 1.0)].assign(strength=0.0)
    found = {}
    for name in ("naive", *ESTIMATORS, "l2sp"):
        own = kept[kept["method"] == name]
        whole = own if name == "naive" else pd.concat([unpenalised, own])
        found[name] = whole.sort_values(["seed", "strength"], ignore_index=True)
    return found


def gain(results: Results, method: str, reference: str) -> list[float]:
    """By seed what a method retains more than another, over the learning accuracies that both reach.

    From half of what naive gains at its best rate; NaN where one of the two does not reach that.
    """
    found = curves(results)
    bases = {record.config.seed: float(np.mean(record.R[0])) for record in results.records("strengths")}
    gains = []
    for seed, base in bases.items():
        one, other, naive = (found[name][found[name]["seed"] == seed] for name in (method, reference, "naive"))
        gains.append(matched_gain(one[["LA", "retention"]], other[["LA", "retention"]], (base + naive["LA"].max()) / 2))
    return gains


def halving(curve: pd.DataFrame) -> float:
    """log10 of the strength from which on held-out loss rises less than half as much as with naive.

    Linear in log λ between the strengths; NaN where that is beyond their range.
    """
    damage = curve[DAMAGE].to_numpy(dtype=float)
    strengths = np.log10(curve["strength"].to_numpy(dtype=float)[1:])
    share = np.maximum.accumulate(damage[:0:-1]) / damage[0]  # from the greatest strength down
    return float(np.interp(0.5, share, strengths[::-1], left=np.nan, right=np.nan))


def alike(samples: Sequence[Sequence[float]]) -> Outcome:
    """Equivalence of all: each 90% interval lies within MARGIN; it fails where one lies outside.

    Two one-sided tests at 5% each; as in ``decide_all``, all must hold, and Bonferroni corrects for any that fails.
    """
    if all(decide_within(seed_interval(values, 0.9), MARGIN) == "holds" for values in samples):
        return "holds"
    corrected = 1 - 0.1 / len(samples)
    outside = any(decide_within(seed_interval(values, corrected), MARGIN) == "fails" for values in samples)
    return "fails" if outside else "undecided"


def conclude(results: Results) -> list[Verdict]:
    """Retention at the same learning accuracies, and the ratio of the strengths that halve the damage."""
    protects, fisher = (seed_interval(gain(results, "sample", reference)) for reference in ("naive", "l2sp"))
    others = {name: gain(results, name, "sample") for name in ESTIMATORS[1:]}
    found = curves(results)
    sample, batched = (
        np.array([halving(part) for _, part in found[name].groupby("seed")]) for name in ("sample", "batched")
    )
    ratio = seed_interval(batched - sample)
    return [
        Verdict("protects", decide(protects), f"{told(protects)} more retained"),
        Verdict("fisher", decide(fisher), f"{told(fisher)} more retained"),
        Verdict(
            "equal",
            alike(list(others.values())),
            "; ".join(f"{name} {told(seed_interval(values, 0.9))}" for name, values in others.items()),
        ),
        Verdict("scale", decide(ratio, np.log10(FACTOR)), f"{told(ratio, 1, 'decades')} more"),
    ]


def draw(results: Results, folder: Path) -> None:
    """Damage and learning accuracy over strength, and retention over learning accuracy; a line per method."""
    from forgetting.report.style import legend_below, looks, new_canvas, panels, save, styled

    found = curves(results)
    if not (found["naive"]["strength"] == 1.0).any():
        return
    labels = {name: f"EWC, {name}" for name in ESTIMATORS} | {"l2sp": "L2-SP", "naive": "naive, its own rates"}
    seeds = results.finished["seed"].nunique()
    with styled():
        canvas = new_canvas(9.0, 3.6)
        damage, learned, plane = panels(canvas, 3, 3)
        handles = []
        for (name, curve), look in zip(found.items(), looks(list(found)).values(), strict=True):
            drawn: dict[str, Any] = {
                "color": look.color,
                "marker": look.marker,
                "markersize": 4,
                "linewidth": look.width,
            }
            mean = curve.groupby("strength")[["LA", "retention"]].mean()
            handles += plane.plot(100 * mean["LA"], 100 * mean["retention"], **drawn)
            if name == "naive":
                continue
            for axis, column, unit in ((damage, DAMAGE, 1), (learned, "LA", 100)):
                at = sorted(curve["strength"].unique())
                intervals = [seed_interval(unit * part.to_numpy()) for _, part in curve.groupby("strength")[column]]
                low, high = [i.low for i in intervals[1:]], [i.high for i in intervals[1:]]
                axis.axhline(intervals[0].mean, color="black", linestyle=":", linewidth=1)
                axis.plot(at[1:], [i.mean for i in intervals[1:]], **drawn)
                axis.fill_between(at[1:], low, high, color=look.color, alpha=0.12, lw=0)
        for axis, label in (
            (damage, "rise of held-out loss (nats per token)"),
            (learned, "learning accuracy LA (points)"),
        ):
            axis.set_xscale("log")
            axis.set_xlabel("strength λ")
            axis.set_ylabel(label)
        plane.set_xlabel("learning accuracy LA (points)")
        plane.set_ylabel("retention of capabilities (%)")
        legend_below(canvas, handles, [labels[name] for name in found])
        canvas.suptitle(f"EWC over strength, by Fisher estimator; mean and 95% t interval over n = {seeds} seeds")
        caption = (
            f"Means over n = {seeds} seeds; bands: 95% t interval over seeds; dotted: strength 0. λ is of the mean "
            "per-sequence Fisher for EWC, of the squared distance for L2-SP."
        )
        save(canvas, folder, "ewc_strength", "EWC over strength, by Fisher estimator", caption)


STUDY = Study("ewc_strength", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
