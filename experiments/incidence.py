"""How often does ordinary fine-tuning forget significantly, and which setting decides?

A widely repeated figure is that 38% of fine-tuned models forget; its source gives no protocol: neither which models,
which tasks, nor what counts. Kalajdzievski 2024, Scaling Laws for Forgetting When Fine-Tuning Large Language Models,
arXiv 2401.05605 (forgetting grows as a shifted power law in the number of update steps); Sun et al. 2019, How to
Fine-Tune BERT for Text Classification, arXiv 1905.05583, section 5.3.2 (the learning rate decides); Ramasesh et al.
2020, arXiv 2007.07400 (so does the task's similarity). Command::

    forgetting study run incidence --scale laptop

Here the settings are the sample: rate, steps, batch size, examples, schedule, and tasks are drawn independently by a
seeded generator, one run and one seed each. A run forgets significantly if it loses more items of a capability than it
gains in McNemar's exact test, paired by item, at 5% after Holm's correction over the capabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forgetting.analysis.significance import holm, mcnemar
from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.micro.sequences import SEQUENCES
from forgetting.results import Items
from forgetting.studies import Results, Scale, Study, main, sized
from forgetting.verdicts import Claim, Verdict, decide, decide_within

SEED = 2026
"""Of the sample of settings."""
RATES = (3e-5, 3e-3)
"""From a hundredth of the pretraining's peak rate to all of it."""
LEVEL = 0.05
REPEATED, MARGIN = 0.38, 0.15
THRESHOLDS = (0.01, 0.05, 0.1, 0.25)
RESAMPLES = 1000
CLAIMS = (
    Claim(
        "share",
        f"{100 * REPEATED:.0f}% of ordinary fine-tunings forget significantly, give or take {100 * MARGIN:.0f} points",
        "a widely repeated figure; its source gives no protocol",
        "38%",
    ),
    Claim(
        "steps",
        "More update steps forget more: their rank correlation with forgetting is above 0",
        "Kalajdzievski 2024, arXiv 2401.05605",
        "a shifted power law in the number of update steps",
    ),
    Claim(
        "rate",
        "The learning rate predicts forgetting better than any other setting, by rank correlation",
        "Sun et al. 2019, arXiv 1905.05583",
        "2e-5 does not forget, 4e-4 fails to converge",
    ),
    Claim(
        "near",
        "Tasks like those of pretraining forget less than new domains: the rank correlation of a new domain with "
        "forgetting is above 0",
        "Ramasesh et al. 2020, arXiv 2007.07400",
        "forgetting is greatest at intermediate similarity",
    ),
)
SETTINGS = {
    "rate": "learning rate",
    "steps": "steps per task",
    "batch": "batch size",
    "examples": "training examples",
    "tasks": "number of tasks",
    "new": "new domain",
    "constant": "constant schedule",
}


def setting(generator: np.random.Generator, seed: int) -> dict[str, Any]:
    """Draw one setting: rates, steps, and numbers of examples log-uniform, the rest uniform."""

    def between(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    sequence = str(generator.choice(["micro-5", "micro-similar"]))
    tasks = generator.choice(list(SEQUENCES[sequence]), size=generator.integers(1, 3), replace=False)
    training = {
        "learning_rate": float(f"{between(*RATES):.3g}"),
        "steps": round(between(10, 160)),
        "batch_size": int(generator.choice([4, 8, 16, 32])),
        "scheduler": str(generator.choice(["constant", "linear", "cosine"])),
        "max_length": 128,
    }
    size = round(between(32, 500))
    return {"name": sequence, "tasks": tuple(map(str, tasks)), "train_size": size, "training": training, "seed": seed}


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """A grid per setting, of one run."""
    generator = np.random.default_rng(SEED)
    found = {}
    for number in range({"smoke": 4, "laptop": 100, "gpu": 200}[scale]):
        drawn = setting(generator, number)
        config = StudyConfig(
            name="incidence",
            sequence=SequenceConfig(
                name=drawn["name"], tasks=drawn["tasks"], train_size=drawn["train_size"], test_size=50
            ),
            seeds=(drawn["seed"],),
            training=TrainingConfig(**drawn["training"]),
            evaluation=EvaluationConfig(limit=100, drift=False),
            pretraining=PretrainingConfig(documents=4, held_out_documents=1),  # nothing here reads any
        )
        rate = {"learning_rate": 1e-2 * (1 + number)}
        found[f"setting-{number:03d}"] = sized(config, scale, tasks=1, training=rate)
    return found


def loses(items: Items, rows: int) -> float:
    """The smallest of Holm's adjusted p-values of the capabilities that lost more items than they gained; 1 if none."""
    before, after = items["G"][0], items["G"][rows]
    tests = [mcnemar(before[capability], after[capability]) for capability in before]
    adjusted = holm([test.p_value for test in tests])
    return min((float(p) for p, test in zip(adjusted, tests, strict=True) if test.lost > test.gained), default=1.0)


def sample(results: Results) -> pd.DataFrame:
    """A row per finished setting: what was drawn, its ``forgetting`` (1 − retention), and whether it is significant."""
    rows = []
    for _, run in results.finished.iterrows():
        config = results.grids[run["grid"]]
        rows.append(
            {
                "rate": config.training.learning_rate,
                "steps": config.training.steps,
                "batch": config.training.batch_size,
                "examples": config.sequence.train_size,
                "tasks": run["tasks_done"],
                "new": config.sequence.name == "micro-5",
                "constant": config.training.scheduler == "constant",
                "forgetting": 1 - run["retention"],
                "p": loses(results.store(run["grid"]).load_items(run["run_id"]), int(run["tasks_done"])),
            }
        )
    return pd.DataFrame(rows, columns=[*SETTINGS, "forgetting", "p"]).astype(float)


class Estimate(NamedTuple):
    """A statistic of the sample and its interval."""

    value: float
    low: float
    high: float


def share_of(significant: pd.Series, level: float) -> Estimate:
    """The share of settings with Wilson's interval over settings."""
    from scipy import stats

    found = stats.binomtest(int(significant.sum()), len(significant))
    low, high = found.proportion_ci(level, method="wilson")
    return Estimate(found.statistic, float(low), float(high))


def correlations(frame: pd.DataFrame) -> tuple[dict[str, Estimate], Estimate]:
    """Spearman's correlation of each setting with forgetting, and by how much |ρ| of the rate exceeds any other's.

    95% percentile intervals of a bootstrap over settings; settings were drawn independently, so that none needs to be
    held fixed for another.
    """
    from scipy.stats import rankdata

    table, generator = frame[[*SETTINGS, "forgetting"]].to_numpy(), np.random.default_rng(0)

    def correlate(rows: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):  # what does not vary has no correlation
            found = np.corrcoef(rankdata(table[rows], axis=0), rowvar=False)[-1, :-1]
        return np.append(found, abs(found[0]) - np.fmax.reduce(abs(found[1:])))

    n = len(table)
    drawn = pd.DataFrame([correlate(generator.integers(n, size=n)) for _ in range(RESAMPLES)])
    limits = drawn.quantile([0.025, 0.975]).to_numpy()
    found = [Estimate(*map(float, row)) for row in zip(correlate(np.arange(n)), *limits, strict=True)]
    return dict(zip(SETTINGS, found, strict=False)), found[-1]


def conclude(results: Results) -> list[Verdict]:
    """The share with Wilson's interval, and rank correlations with forgetting."""
    frame = sample(results)
    significant = frame["p"] < LEVEL
    share, narrow = share_of(significant, 0.95), share_of(significant, 0.9)
    within = decide_within(Estimate(share.value, narrow.low - REPEATED, narrow.high - REPEATED), MARGIN)
    thresholds = ", ".join(f"{100 * (frame['forgetting'] > t).mean():.0f}% more than {100 * t:g}%" for t in THRESHOLDS)
    ours = (
        f"{int(significant.sum())} of {len(frame)} settings, {100 * share.value:.0f}% (95%, Wilson, over settings: "
        f"{100 * share.low:.0f} to {100 * share.high:.0f}); of the skill above chance lose {thresholds}"
    )
    found, lead = correlations(frame)

    def told(estimate: Estimate) -> str:
        return f"{estimate.value:.2f} (95%, bootstrap over settings: {estimate.low:.2f} to {estimate.high:.2f})"

    return [
        Verdict("share", within, ours),
        Verdict("steps", decide(found["steps"]), f"ρ = {told(found['steps'])}"),
        Verdict("rate", decide(lead), f"ρ = {told(found['rate'])}; |ρ| exceeds the greatest other by {told(lead)}"),
        Verdict("near", decide(found["new"]), f"ρ = {told(found['new'])}"),
    ]


def draw(results: Results, folder: Path) -> None:
    """How many lose how much, forgetting over the rate, and each setting's rank correlation with it."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    frame = sample(results)
    significant = frame["p"] < LEVEL
    share = share_of(significant, 0.95)
    found, _ = correlations(frame)
    colors = seaborn.color_palette("colorblind")
    with styled():
        canvas = new_canvas(10.0, 3.9)
        left, middle, right = panels(canvas, 3, 3)
        lost = 100 * np.sort(frame["forgetting"])
        left.step(lost, 100 * (1 - np.arange(len(lost)) / len(lost)), where="pre", color=colors[0])
        left.axhline(100 * REPEATED, color="0.4", linestyle="--", linewidth=1, label=f"{100 * REPEATED:.0f}%")
        left.axhspan(100 * share.low, 100 * share.high, color=colors[1], alpha=0.2, lw=0)
        left.axhline(100 * share.value, color=colors[1], linewidth=1, label="share significant, 95% Wilson")
        left.set(xlabel="skill above chance lost, at least (%)", ylabel="share of settings (%)", ylim=(0, 102))
        for value, label, marker, color in (
            (False, "not significant", "o", colors[0]),
            (True, "significant", "^", colors[1]),
        ):
            part = frame[significant == value]
            middle.plot(part["rate"], 100 * part["forgetting"], marker, color=color, markersize=4, label=label)
        middle.set_xscale("log")
        middle.set(xlabel="peak learning rate", ylabel="skill above chance lost (%)")
        names = sorted(SETTINGS, key=lambda name: abs(np.nan_to_num(found[name].value)))
        values = np.array([found[name] for name in names]).T
        limits = np.maximum([values[0] - values[1], values[2] - values[0]], 0)
        right.errorbar(values[0], range(len(names)), xerr=limits, fmt="o", color=colors[0], markersize=4, capsize=3)
        right.axvline(0, color="0.4", linewidth=1)
        right.set_yticks(range(len(names)), [SETTINGS[name] for name in names])
        right.set(xlabel="rank correlation with forgetting", xlim=(-1.05, 1.05), ylim=(-0.5, len(names) - 0.5))
        shown = [axis.get_legend_handles_labels() for axis in (left, middle)]
        legend_below(
            canvas, [h for handles, _ in shown for h in handles], [name for _, names in shown for name in names]
        )
        canvas.suptitle(f"Forgetting over n = {len(frame)} sampled settings; bars: 95%, bootstrap over settings")
        caption = (
            f"n = {len(frame)} settings, one run each; whiskers: 95% percentile interval of a bootstrap over settings."
        )
        save(canvas, folder, "incidence", "How often ordinary fine-tuning forgets", caption)


STUDY = Study("incidence", CLAIMS, grids, conclude, draw, unit="settings")

if __name__ == "__main__":
    main(STUDY, __doc__)
