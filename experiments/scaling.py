"""How does forgetting grow with model size, steps and tuned parameters? The published laws, fitted and tested.

Papers: Kalajdzievski 2024, Scaling Laws for Forgetting When Fine-Tuning Large Language Models, arXiv 2401.05605
(forgetting is linear in the fine-tuning loss, and a shifted power law in tuned parameters and steps); Ramasesh et al.
2022, Effect of Scale on Catastrophic Forgetting in Neural Networks, ICLR (larger pretrained models forget less).
Commands::

    forgetting micro pretrain --size 300k --output results/models/micro-300k
    forgetting micro pretrain --size 4M --output results/models/micro-4M
    forgetting study run scaling --scale laptop

Models of three sizes learn a new domain (an invented language) by full fine-tuning and by LoRA of four ranks, over five
numbers of steps, each at a rate of its own kind. Forgetting is KL(base ‖ tuned) on held-out pretraining text, nats per
token: the first paper's measure (the cross-entropy of the tuned model's predictions with the base model's as the
target) less the base model's entropy, which is constant. The fine-tuning loss is the mean over the last tenth of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forgetting.analysis.laws import fit_finetuning_loss, fit_tuned_parameters, leave_one_group_out
from forgetting.analysis.stats import seed_interval
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Verdict, decide, decide_all, decide_below, told

MODELS = {"300k": "results/models/micro-300k", "1M": "micro", "4M": "results/models/micro-4M"}
RANKS = (1, 4, 16, 64)
LORA_RATE = 5
"""LoRA's rate over that of full fine-tuning."""
STEPS = (10, 20, 40, 80, 160)
FORGETTING = "KL_forward:pretraining"
PAPER = "Kalajdzievski 2024, arXiv 2401.05605"
CLAIMS = (
    Claim(
        "linear",
        "Forgetting is linear in the fine-tuning loss: within a model size, a line predicts left-out cells with less "
        "than half the error of the mean",
        PAPER,
        "a strong inverse linear relationship",
    ),
    Claim(
        "power_law",
        "Within a model size, a shifted power law in LoRA's tuned parameters and steps predicts left-out cells with "
        "less than half the error of the mean",
        PAPER,
        "a shifted power law in tuned parameters and steps; its exact form is rebuilt from the paper's coefficients",
    ),
    Claim(
        "steps",
        "More steps forget more: every doubling of steps adds to it, full fine-tuning of the shipped model",
        PAPER,
        "forgetting increases with steps",
    ),
    Claim(
        "size",
        "At equal steps the largest model forgets less than the smallest, full fine-tuning",
        "Ramasesh et al. 2022, ICLR",
        "robustness improves with scale",
    ),
)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """A grid per model size: methods × steps."""
    models, ranks, steps = ({"1M": "micro"}, (4,), (1, 2)) if scale == "smoke" else (MODELS, RANKS, STEPS)
    methods = ["naive", *(f"lora:r={rank},alpha={rank},lr_factor={LORA_RATE}" for rank in ranks)]
    longest = steps[-1]
    mitigations = tuple(f"{method}+few_steps:fraction={count / longest:g}" for method in methods for count in steps)

    def grid(label: str, model: str) -> StudyConfig:
        config = StudyConfig(
            name=f"scaling-{label}",
            model=model,
            sequence=SequenceConfig(name="micro-5", tasks=("second_language",), train_size=1000, test_size=100),
            mitigations=mitigations,
            seeds=seeds_of(scale),
            training=TrainingConfig(
                learning_rate=1e-3, steps=longest, batch_size=16, max_length=128, scheduler="constant"
            ),
            evaluation=EvaluationConfig(limit=50, drift_tokens=5000),
        )
        return sized(config, scale, training={"steps": longest})

    return {label: grid(label, model) for label, model in models.items()}


def points(results: Results) -> pd.DataFrame:
    """A row per run: model, full or LoRA, tuned parameters P, steps N, fine-tuning loss and forgetting."""
    frame = results.finished
    losses = {
        (grid, record.run_id): record.cost.tasks[0].train_loss
        for grid in results.begun
        for record in results.records(grid)
    }
    loss = [losses[grid, run_id] for grid, run_id in zip(frame["grid"], frame["run_id"], strict=True)]
    return frame.assign(
        lora=frame["mitigation"].str.startswith("lora"),
        P=frame["trainable_parameters"].astype(float),
        N=frame["steps"].astype(float),
        loss=np.array(loss, dtype=float),
        forgetting=frame[FORGETTING],
    )


def error(frame: pd.DataFrame, law: str) -> float:
    """Error of a law on cells (parameters and steps) left out, over that of the mean; NaN where it cannot be fitted."""
    cells = [f"{p:g} {n:g}" for p, n in zip(frame["P"], frame["N"], strict=True)]
    fit: Callable[..., Any]
    if law == "linear":
        fit, data = fit_finetuning_loss, {"finetuning_loss": frame["loss"].to_numpy()}
    else:
        fit, data = fit_tuned_parameters, {"P": frame["P"].to_numpy(), "N": frame["N"].to_numpy()}
    data["forgetting"] = frame["forgetting"].to_numpy()
    try:
        found = leave_one_group_out(fit, data, target="forgetting", groups=cells, extrapolate=True).pooled
    except ValueError:
        return math.nan
    return found.rmse / found.rmse_of_mean


def conclude(results: Results) -> list[Verdict]:
    """The laws' errors, per model size and seed; steps and size paired by seed."""
    frame = points(results)
    verdicts = []
    for law in ("linear", "power_law"):
        used = frame if law == "linear" else frame[frame["lora"]]
        errors = {key: error(part, law) for key, part in used.groupby(["grid", "seed"])}
        lost = sum(math.isnan(value) for value in errors.values())
        by_seed = pd.Series(errors).groupby(level=1).mean()  # over sizes
        if lost:
            why = f"the law cannot be fitted in {lost} of {len(errors)} sizes and seeds"
            verdicts.append(Verdict(law, "undecided", why))
        else:
            ratio = seed_interval(by_seed.to_numpy())
            verdicts.append(Verdict(law, decide_below(ratio, 0.5), told(ratio, 1, "of the mean's error")))
    full = {
        grid: part.pivot(index="seed", columns="N", values="forgetting").to_numpy()  # (seeds, numbers of steps)
        for grid, part in frame[~frame["lora"]].groupby("grid")
    }
    outcome, rise = decide_all(list(np.diff(full["1M"], axis=1).T))
    verdicts.append(Verdict("steps", outcome, told(rise, 1, "nats per token, the smallest rise of a doubling")))
    sizes = list(results.grids)
    gap = seed_interval((full[sizes[0]] - full[sizes[-1]]).mean(axis=1))
    verdicts.append(
        Verdict("size", decide(gap), told(gap, 1, f"nats per token more in {sizes[0]} than in {sizes[-1]}"))
    )
    return verdicts


def draw(results: Results, folder: Path) -> None:
    """Forgetting over steps, and over the fine-tuning loss; a panel row per model size."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    frame = points(results)
    sizes = [grid for grid in results.grids if grid in set(frame["grid"])]
    seeds = frame["seed"].nunique()
    with styled():
        canvas = new_canvas(2.9 * max(2, len(sizes)), 5.4)
        axes = panels(canvas, 2 * len(sizes), len(sizes))
        handles: dict[str, object] = {}
        for place, size in enumerate(sizes):
            tuned = sorted(frame.loc[frame["grid"] == size, "P"].unique())
            colors = seaborn.color_palette("viridis", len(tuned))
            for count, color, marker in zip(tuned, colors, "os^Dv", strict=False):
                part = frame[(frame["grid"] == size) & (frame["P"] == count)]
                cells = [(float(n), seed_interval(cell["forgetting"])) for n, cell in part.groupby("N")]
                steps, intervals = [n for n, _ in cells], [interval for _, interval in cells]
                line = axes[place].plot(steps, [i.mean for i in intervals], color=color, marker=marker, markersize=4)
                axes[place].fill_between(
                    steps, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.15, lw=0
                )
                axes[len(sizes) + place].scatter(part["loss"], part["forgetting"], color=color, marker=marker, s=12)
                rank = part["mitigation"].str.extract(r"lora:r=(\d+)")[0].iloc[0]
                handles.setdefault(f"LoRA, rank {rank}" if isinstance(rank, str) else "full fine-tuning", line[0])
            axes[place].set_xscale("log")
            steps = sorted(frame["N"].unique())
            axes[place].set_xticks(steps, [f"{count:g}" for count in steps], minor=False)
            axes[place].minorticks_off()
            axes[place].set_xlabel("steps")
            axes[place].set_title(f"{size} parameters")
            axes[len(sizes) + place].set_xlabel("fine-tuning loss (nats per token)")
            for axis in (axes[place], axes[len(sizes) + place]):
                axis.set_ylabel("KL(base ‖ tuned), nats per token")
        legend_below(canvas, list(handles.values()), list(handles))
        canvas.suptitle(f"Forgetting over steps, tuned parameters and fine-tuning loss (n = {seeds} seeds)")
        caption = f"Top: mean over n = {seeds} seeds, bands 95% t interval over seeds. Bottom: a point per run."
        save(canvas, folder, "scaling", "Forgetting over size, steps and tuned parameters", caption)


STUDY = Study("scaling", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
