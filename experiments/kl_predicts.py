"""What predicts how much is forgotten, whatever the method: KL on the new task, KL on old text, or distance in weights?

Paper: Shenfeld, Pari & Agrawal 2025, RL's Razor: Why Online Reinforcement Learning Forgets Less, arXiv 2509.04259
(forgetting follows a quadratic in the forward KL(base‖tuned) of the new task's outputs, whatever the algorithm; reverse
KL, distances of weights and of activations predict it worse). Command::

    forgetting study run kl_predicts --scale laptop

The embedded decoder learns one new domain of micro-5 by ten methods at strengths that range from no forgetting to much.
Forgetting is the share of the capabilities above chance that is lost (1 − retention), and not the rise of loss on
pretraining text, which is nearly the KL there by definition. Each predictor's quadratic is fitted to nine methods and
tried on the tenth; intervals are of a bootstrap over methods. The KL of the answers is that at the tokens of the right
ones (the paper draws them from the base model); the Fisher distance ½ΔθᵀFΔθ is in the base model's Fisher information
of pretraining text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from forgetting.analysis.laws import compare_predictors, fit_polynomial
from forgetting.analysis.laws.predictors import PredictorComparison
from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Outcome, Verdict, decide

SETTINGS: dict[str, tuple[str, ...]] = {
    "naive": ("low_lr:factor=0.1", "naive", "low_lr:factor=2"),
    "few steps": ("few_steps:fraction=0.25", "low_lr:factor=3+few_steps:fraction=0.5"),
    "freeze": ("freeze:all_but_last=1",),
    "LoRA": ("lora:r=16,lr_factor=5",),
    "L2-SP": ("l2sp:strength=30",),
    "replay": ("replay:fraction=0.1", "replay:fraction=0.5"),
    "WiSE-FT": ("wise_ft:curve=none,alpha=0.5",),
    "KL on the task": ("kl_to_base:on=task,strength=1",),
    "KL on text": ("kl_to_base:on=text,strength=0.3",),
    "EWC": ("ewc:strength=1000", "ewc:strength=100000"),
}
FINER: dict[str, tuple[str, ...]] = {
    "naive": ("low_lr:factor=0.3", "low_lr:factor=3"),
    "few steps": ("few_steps:fraction=0.1", "few_steps:fraction=0.5"),
    "freeze": ("freeze:first=2,embeddings=true",),
    "LoRA": ("lora:r=16,lr_factor=2", "lora:r=16,lr_factor=10"),
    "L2-SP": ("l2sp:strength=3", "l2sp:strength=100"),
    "replay": ("replay:fraction=0.25",),
    "WiSE-FT": ("wise_ft:curve=none,alpha=0.25", "wise_ft:curve=none,alpha=0.75"),
    "KL on the task": ("kl_to_base:on=task,strength=0.3", "kl_to_base:on=task,strength=10"),
    "KL on text": ("kl_to_base:on=text,strength=0.1", "kl_to_base:on=text,strength=3"),
    "EWC": ("ewc:strength=10000",),
}
"""Added at scale ``gpu``."""
METHOD = {setting: name for table in (SETTINGS, FINER) for name, settings in table.items() for setting in settings}
TASKS = ("new_facts", "routing", "second_language")
KL = "forward KL, answers"
PREDICTORS = {
    KL: "KL_forward:task_answers",
    "reverse KL, answers": "KL_reverse:task_answers",
    "total variation, answers": "TV:task_answers",
    "forward KL, prompts": "KL_forward:task_inputs",
    "forward KL, old text": "KL_forward:pretraining",
    "change of weights": "weight_change",
    "Fisher distance": "fisher_distance",
}
PUBLISHED = 0.71
"""R² of their language models."""
PAPER = "Shenfeld et al. 2025, arXiv 2509.04259"
CLAIMS = (
    Claim(
        "within",
        f"Within a task, a quadratic in the forward KL of its answers explains more than {100 * PUBLISHED:.0f}% of the "
        "variance of forgetting over methods",
        PAPER,
        "R² = 0.96 (ParityMNIST), 0.71 (language models)",
    ),
    Claim(
        "across",
        f"One quadratic in that KL serves all tasks: it explains more than {100 * PUBLISHED:.0f}% of the variance over "
        "methods and tasks",
        PAPER,
        "forgetting is determined by the KL on the new task, whatever the algorithm",
    ),
    Claim(
        "reverse",
        "The forward KL of the answers predicts a left-out method's forgetting with a smaller error than the reverse",
        PAPER,
        "R² = 0.96 against 0.93 (ParityMNIST)",
    ),
    Claim(
        "weights",
        "It predicts it with a smaller error than the change of the weights",
        PAPER,
        "norms of the weights' change have a lower R² than KL's 0.96 (ParityMNIST)",
    ),
    Claim(
        "variation",
        "It predicts it with a smaller error than the total variation of the answers",
        PAPER,
        "total variation has a lower R² than KL's 0.96 (ParityMNIST)",
    ),
    Claim(
        "fisher",
        "It predicts it with a smaller error than the Fisher distance of the weights",
        PAPER,
        "norms of the weights' change have a lower R² than KL's 0.96 (ParityMNIST)",
    ),
    Claim(
        "text",
        "No old data is needed: it predicts it with a smaller error than the forward KL on old text",
        PAPER,
        "the KL is that on the new task alone",
    ),
)
RIVALS = {
    "reverse": "reverse KL, answers",
    "weights": "change of weights",
    "variation": "total variation, answers",
    "fisher": "Fisher distance",
    "text": "forward KL, old text",
}


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """A grid per task: settings × seeds."""
    smoke = scale == "smoke"
    if smoke:
        settings = [row[0] for row in SETTINGS.values() if row[0].split(":")[0] not in ("kl_to_base", "ewc")]
    else:
        settings = [setting for row in SETTINGS.values() for setting in row]
    if scale == "gpu":
        settings += [setting for row in FINER.values() for setting in row]

    def grid(task: str) -> StudyConfig:
        config = StudyConfig(
            name="kl_predicts",
            sequence=SequenceConfig(name="micro-5", tasks=(task,), test_size=100),
            mitigations=tuple(settings),
            seeds=seeds_of(scale, gpu=8),
            training=TrainingConfig(learning_rate=1e-3, steps=80, batch_size=16, max_length=128),
            evaluation=EvaluationConfig(limit=100, drift_tokens=5000, fisher_distance=True),
            pretraining=PretrainingConfig(documents=1000),
        )
        return sized(config, scale, training={"learning_rate": 1e-2}, pretraining={"documents": 100})

    return {task: grid(task) for task in TASKS[: 1 if smoke else 3]}


def points(results: Results) -> pd.DataFrame:
    """The finished runs with their method, forgetting, and change of weights (root mean square over layers)."""
    frame = results.finished
    change = {
        record.run_id: float(np.sqrt(np.mean(np.square(list(record.rows[-1].weight_change.values())))))
        for grid in results.begun
        for record in results.records(grid)
    }
    return frame.assign(
        method=frame["mitigation"].map(METHOD),
        forgetting=1 - frame["retention"],
        weight_change=frame["run_id"].map(change),
    )


def compared(frame: pd.DataFrame) -> PredictorComparison:
    """The predictors on these runs, a method's runs left out together."""
    values = {name: frame[column].to_numpy(float) for name, column in PREDICTORS.items()}
    return compare_predictors(frame["forgetting"].to_numpy(float), values, reference=KL, groups=list(frame["method"]))


def unanimous(outcomes: list[Outcome]) -> Outcome:
    """The outcome where all tasks agree on one, else ``undecided``."""
    return outcomes[0] if len(set(outcomes)) == 1 else "undecided"


def conclude(results: Results) -> list[Verdict]:
    """R² against the published one, and differences of errors at left-out methods, task by task."""
    frame = points(results)
    tasks = {str(task): compared(group) for task, group in frame.groupby("grid", sort=False)}
    whole = compared(frame)
    how = f"95%, bootstrap over {whole.groups} methods; {whole.points} runs"

    r2 = {task: found.quality[KL].r2 for task, found in tasks.items()}
    within = "; ".join(f"{task}: R² = {r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for task, r in r2.items())
    across = whole.quality[KL].r2
    verdicts = [
        Verdict("within", unanimous([decide(r, PUBLISHED) for r in r2.values()]), f"{within} ({how})"),
        Verdict(
            "across",
            decide(across, PUBLISHED),
            f"R² = {across.value:.2f} ({across.low:.2f} to {across.high:.2f}; {how})",
        ),
    ]
    for claim, rival in RIVALS.items():
        gains = {task: found.differences[rival].cv_rmse for task, found in tasks.items()}
        told = "; ".join(
            f"{task}: {100 * tasks[task].quality[rival].cv_rmse.value:.3g} against "
            f"{100 * tasks[task].quality[KL].cv_rmse.value:.3g} points, {100 * gain.value:.3g} more "
            f"({100 * gain.low:.3g} to {100 * gain.high:.3g})"
            for task, gain in gains.items()
        )
        verdicts.append(
            Verdict(
                claim, unanimous([decide(gain) for gain in gains.values()]), f"error of the {rival}: {told} ({how})"
            )
        )
    return verdicts


def draw(results: Results, folder: Path) -> None:
    """Forgetting over the forward KL by task, and how well each predictor does."""
    import seaborn
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from forgetting.report.style import legend_below, looks, new_canvas, panels, save, styled

    frame = points(results)
    tasks = list(frame.groupby("grid", sort=False))
    look = looks(list(SETTINGS))
    with styled():
        canvas = new_canvas(9.0, 7.2)
        *scatter, last = panels(canvas, len(tasks) + 1, 2)
        handles = {}
        for axis, (task, group) in zip(scatter, tasks, strict=True):
            for method, runs in group.groupby("method", sort=False):
                as_ = look[str(method)]
                kl, lost = runs[PREDICTORS[KL]], 100 * runs["forgetting"]
                (handles[str(method)],) = axis.plot(kl, lost, as_.marker, color=as_.color, markersize=5, alpha=0.8)
            if len(group) > 3:
                law = fit_polynomial(100 * group["forgetting"], predictor=group[PREDICTORS[KL]])
                low, high = law.ranges["predictor"]
                line = np.geomspace(max(low, 1e-4 * high), high, 200).clip(low, high)
                axis.plot(line, law.predict(predictor=line), color="0.3", linewidth=1)
                axis.set_title(f"{task}: quadratic, R² = {law.r2:.2f}")
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set(xlabel="forward KL of the answers (nats per token)", ylabel="forgetting (% of skill above chance)")
        enough = [(str(task), group) for task, group in tasks if group["method"].nunique() > 4]
        colors = seaborn.color_palette("viridis", len(enough) + 1)
        for k, (task, group) in enumerate(enough):
            r2 = [compared(group).quality[name].r2 for name in PREDICTORS]
            place = np.arange(len(r2)) + 0.2 * (k - (len(enough) - 1) / 2)
            value = [r.value for r in r2]
            limits = [[r.value - r.low for r in r2], [r.high - r.value for r in r2]]
            last.errorbar(
                value, place, xerr=np.maximum(limits, 0), fmt="os^"[k], color=colors[k], label=task, capsize=3
            )
        last.axvline(PUBLISHED, color="0.4", linestyle="--", linewidth=1)
        last.set_yticks(range(len(PREDICTORS)), [name.replace(", ", ",\n") for name in PREDICTORS])
        last.invert_yaxis()
        last.set(
            xlabel="R² of a quadratic; 95%, bootstrap over methods", title="Dashed: Shenfeld et al., language models"
        )
        last.legend(loc="upper center", bbox_to_anchor=(0.3, -0.14), ncols=3, frameon=False)
        legend_below(canvas, list(handles.values()), list(handles))
        seeds = frame["seed"].nunique()
        canvas.suptitle(f"What predicts forgetting: a point per run, n = {seeds} seeds per setting")
        caption = f"A point per run, n = {seeds} seeds; bars: 95% percentile interval of a bootstrap over methods."
        save(canvas, folder, "kl_predicts", "What predicts forgetting", caption)


STUDY = Study("kl_predicts", CLAIMS, grids, conclude, draw)

if __name__ == "__main__":
    main(STUDY, __doc__)
