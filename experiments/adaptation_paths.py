"""Fine-tuning, feature extraction, unfreezing, adapters, prompts, examples in context: what each learns, costs, keeps.

Papers: Bohnet et al. 2025, A Comparative Analysis of LLM Adaptation, arXiv 2511.00130; Howard & Ruder 2018, ULMFiT,
arXiv 1801.06146; Kumar et al. 2022, Fine-Tuning Can Distort Pretrained Features, arXiv 2202.10054; Lester et al. 2021,
arXiv 2104.08691; Ben Zaken et al. 2022, BitFit, arXiv 2106.10199; Liu et al. 2022, (IA)³, arXiv 2205.05638. Command::

    forgetting study run adaptation_paths --scale laptop

Every method gets four settings on micro-tuning, with another seed and other items of the probes than are reported, and
the rule of the leaderboard chooses one: what retains most within MARGIN of the best full fine-tuning, else what learns
most. The chosen ones learn three tasks of micro-5. The table that introductions to transfer learning print without
data is written beside the figure. Only what trains embeddings can learn answers in words that pretraining never had
(new_facts, second_language; sorting's are known): the table has each task's accuracy after its own training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from forgetting.analysis.stats import Interval, paired_difference, seed_interval
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.report.summary import aggregate
from forgetting.studies import Results, Scale, Study, main, seeds_of, sized
from forgetting.verdicts import Claim, Verdict, decide, decide_all, decide_below, decide_within, told

if TYPE_CHECKING:
    from forgetting.report.cells import Table

FULL = "naive"
NAMES = {
    FULL: "full fine-tuning",
    "feature_extraction": "feature extraction",
    "gradual_unfreezing": "gradual unfreezing",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "ia3": "(IA)³",
    "prompt_tuning": "prompt tuning",
    "in_context": "in-context learning",
}
METHODS = {
    FULL: (FULL, *(f"low_lr:factor={x}" for x in (0.1, 0.3, 3))),
    "feature_extraction": tuple(f"feature_extraction+low_lr:factor={x}" for x in (0.3, 1, 3, 10)),
    "gradual_unfreezing": tuple(f"gradual_unfreezing:lr_factor={x}" for x in (0.1, 0.3, 1, 3)),
    "bitfit": tuple(f"bitfit:lr_factor={x}" for x in (1, 3, 10, 30)),
    "lora": tuple(f"lora:r=16,lr_factor={x}" for x in (1, 2, 5, 10)),
    "ia3": tuple(f"ia3:lr_factor={x}" for x in (3, 10, 30, 100)),
    "prompt_tuning": tuple(f"prompt_tuning:lr_factor={x}" for x in (10, 30, 100, 300)),
    "in_context": tuple(f"in_context:shots={x}" for x in (1, 2, 3, 4)),
}
"""Those of the leaderboard, with its settings: four each."""
METHOD = {setting: method for method, settings in METHODS.items() for setting in settings}
ADDED = ("feature_extraction", "lora", "ia3", "prompt_tuning")
"""What these train is not part of the pretrained model, but held beside it."""
TUNING, REPORTED = "tuning", "reported"
MARGIN = 0.1
DAMAGE = "delta_CE:pretraining"
EQUAL = 0.05
"""Learning accuracies that differ by less are called equal."""
BOHNET, KUMAR = "Bohnet et al. 2025, arXiv 2511.00130", "Kumar et al. 2022, arXiv 2202.10054"
CLAIMS = (
    Claim("full_learns", "Full fine-tuning learns more than LoRA", BOHNET, "it excels at skill acquisition"),
    Claim("full_forgets", "Full fine-tuning retains less than LoRA", BOHNET, "it is highly susceptible to forgetting"),
    Claim(
        "balance",
        "LoRA's mean of learning accuracy and retention is greater than full fine-tuning's and in-context learning's",
        BOHNET,
        "LoRA is the most effective balance",
    ),
    Claim(
        "context", "In-context learning learns less than full fine-tuning", BOHNET, "it struggles with complex skills"
    ),
    Claim(
        "ia3",
        "(IA)³ learns more than in-context learning",
        "Liu et al. 2022, arXiv 2205.05638",
        "few-shot parameter-efficient fine-tuning is more accurate than in-context learning (T0, T-Few)",
    ),
    Claim(
        "unfreezing",
        "Gradual unfreezing retains more than full fine-tuning",
        "Howard & Ruder 2018, arXiv 1801.06146",
        "fine-tuning all layers at once risks catastrophic forgetting",
    ),
    Claim(
        "features_learn",
        "Feature extraction learns less than full fine-tuning",
        KUMAR,
        "fine-tuning is 2 points better in distribution than a linear probe, mean of ten data sets",
    ),
    Claim(
        "features_keep",
        "Feature extraction, scored with its new head, retains more than full fine-tuning",
        KUMAR,
        "fine-tuning is 7 points worse out of distribution (which is not retention)",
    ),
    Claim(
        "prompt",
        "Prompt tuning learns less than full fine-tuning",
        "Lester et al. 2021, arXiv 2104.08691",
        "it closes the gap only in models of billions of parameters",
    ),
    Claim(
        "bitfit",
        f"BitFit's learning accuracy is within {100 * EQUAL:g} points of full fine-tuning's",
        "Ben Zaken et al. 2022, arXiv 2106.10199",
        "with small to medium training data competitive with full fine-tuning",
    ),
)


def protocol(scale: Scale, grid: str, mitigations: tuple[str, ...]) -> StudyConfig:
    """A grid; the two differ in tasks, settings, seeds and the probes' items alone."""
    tuning = grid == TUNING
    tasks = ("storing", "shifting") if tuning else ("new_facts", "sorting", "second_language")
    config = StudyConfig(
        name=f"adaptation_paths-{grid}",
        sequence=SequenceConfig(name="micro-tuning" if tuning else "micro-5", tasks=tasks, test_size=100),
        mitigations=mitigations,
        seeds=(100,) if tuning else seeds_of(scale),
        training=TrainingConfig(learning_rate=1e-3, steps=80, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(limit=100, offset=100 if tuning else 0, drift_tokens=5000),
    )
    return sized(config, scale, tasks=1)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """The tuning runs."""
    kept = {
        method: settings[: 2 - (method != FULL)] if scale == "smoke" else settings
        for method, settings in METHODS.items()
    }
    return {TUNING: protocol(scale, TUNING, tuple(setting for settings in kept.values() for setting in settings))}


def choose(frame: pd.DataFrame) -> dict[str, str]:
    """Method to the setting that is reported.

    Args:
        frame: The finished tuning runs, a row each with ``mitigation``, ``LA`` and ``retention``.
    """
    scores = frame.set_index("mitigation")[["LA", "retention"]]
    target = float(scores.loc[[METHOD[setting] == FULL for setting in scores.index], "LA"].max()) - MARGIN

    def worth(setting: str) -> tuple[bool, float]:
        learned, kept = map(float, scores.loc[[setting]].to_numpy()[0])
        return (True, kept) if learned >= target else (False, learned)

    return {
        method: max((setting for setting in settings if setting in scores.index), key=worth)
        for method, settings in METHODS.items()
    }


def then(scale: Scale, results: Results) -> dict[str, StudyConfig]:
    """The reported runs: the chosen setting of each method."""
    chosen = choose(results.finished[results.finished["grid"] == TUNING])
    return {REPORTED: protocol(scale, REPORTED, tuple(chosen.values()))}


def reported(results: Results) -> pd.DataFrame:
    """The finished reported runs with their method."""
    frame = results.finished[results.finished["grid"] == REPORTED]
    return frame.assign(method=frame["mitigation"].map(METHOD))


def conclude(results: Results) -> list[Verdict]:
    """Differences between two methods, paired by seed."""
    frame = reported(results)
    by = {what: frame.pivot(index="seed", columns="method", values=what) for what in ("LA", "retention", DAMAGE)}
    learned, kept, nats = by["LA"], by["retention"], by[DAMAGE]

    def told_of(interval: Interval, column: str, *methods: str) -> str:
        means = "; ".join(
            f"{NAMES[m]}: LA {100 * learned[m].mean():.1f}, retention {100 * kept[m].mean():.1f} %, "
            f"ΔCE {nats[m].mean():.2f} nats"
            for m in methods
        )
        return f"{told(interval)} more {'learned' if column == 'LA' else 'retained'} ({means})"

    def compare(claim: str, column: str, first: str, second: str, below: bool = False) -> Verdict:
        interval = paired_difference(by[column][second], by[column][first], "seeds")
        outcome = decide_below(interval) if below else decide(interval)
        return Verdict(claim, outcome, told_of(interval, column, first, second))

    both = (learned + kept) / 2
    balanced, balance = decide_all([(both["lora"] - both[rival]).to_numpy() for rival in (FULL, "in_context")])
    close = paired_difference(learned[FULL], learned["bitfit"], "seeds", 0.9)
    return [
        compare("full_learns", "LA", FULL, "lora"),
        compare("full_forgets", "retention", FULL, "lora", below=True),
        Verdict("balance", balanced, f"{told(balance)} more than the better of the two"),
        compare("context", "LA", "in_context", FULL, below=True),
        compare("ia3", "LA", "ia3", "in_context"),
        compare("unfreezing", "retention", "gradual_unfreezing", FULL),
        compare("features_learn", "LA", "feature_extraction", FULL, below=True),
        compare("features_keep", "retention", "feature_extraction", FULL),
        compare("prompt", "LA", "prompt_tuning", FULL, below=True),
        Verdict("bitfit", decide_within(close, EQUAL), told_of(close, "LA", "bitfit", FULL)),
    ]


def task_scores(results: Results) -> pd.DataFrame:
    """Accuracy on each task after its own training, mean over seeds, settings × tasks."""
    scores = [
        (record.config.mitigation, task.name, record.R[position + 1][position])
        for record in results.records(REPORTED)
        for position, task in enumerate(record.tasks)
    ]
    frame = pd.DataFrame(scores, columns=["mitigation", "task", "score"])
    return frame.groupby(["mitigation", "task"], sort=False)["score"].mean().unstack()


def table(results: Results) -> Table:
    """What introductions print without data: quality, cost, retention, and what a wrong setting would have cost."""
    from forgetting.report.cells import Table, large, number, spread

    frame, tasks = reported(results), task_scores(results)
    points = aggregate(frame.drop(columns=["grid", "method"])).set_index("mitigation")
    tuning = results.finished[results.finished["grid"] == TUNING]
    worst = tuning.groupby(tuning["mitigation"].map(METHOD))["retention"].min()
    full = points.loc[[METHOD[str(setting)] == FULL for setting in points.index], "seconds"].mean()
    rows = []
    for setting, point in points.iterrows():
        half = {what: point[f"{what}_high"] - point[what] for what in ("LA", "retention", DAMAGE)}
        trained = point["trainable_parameters"] if point["steps"] else 0.0
        held = point["parameters"] + (4 if METHOD[str(setting)] in ADDED else 3) * trained + point["stored_floats"]
        rows.append(
            [
                NAMES[METHOD[str(setting)]],
                str(setting),
                spread(100 * point["LA"], 100 * half["LA"]),
                *(number(100 * float(score)) for score in tasks.loc[[str(setting)]].to_numpy()[0]),
                spread(100 * point["retention"], 100 * half["retention"]),
                spread(point[DAMAGE], half[DAMAGE], 2),
                number(100 * worst[METHOD[str(setting)]]),
                number(point["steps"], 0),
                number(float(point["seconds"] / full), 2),
                *map(large, (trained, held, point["stored_floats"])),
            ]
        )
    caption = (
        f"Ways to adapt a pretrained model, each at the setting chosen on other tasks; n = {frame['seed'].nunique()} "
        "seeds; mean ± half of the 95% t interval over seeds. LA, and the accuracy on each task after its own "
        "training, in points; retention of the probed capabilities; rise of the loss on held-out pretraining text; the "
        "least that one of the method's settings retained on the tuning tasks; optimizer steps; time of training, "
        "full fine-tuning's being 1; trained parameters; floats held in training (weights, gradients, Adam's two "
        "moments, what the method stores; no activations). In-context learning trains nothing, and makes every "
        "test item longer."
    )
    columns = ["method", "setting", "LA", *map(str, tasks.columns), "retention (%)", "ΔCE (nats/token)"]
    columns += ["worst setting's retention (%)", "steps", "time", "trained", "held", "stored"]
    return Table("adaptation_paths", caption, columns, rows)


def draw(results: Results, folder: Path) -> None:
    """The table, and retention against learning accuracy: chosen settings, and all settings on the tuning tasks."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled
    from forgetting.report.tables import latex, markdown
    from forgetting.results import write_atomically

    frame = reported(results)
    if frame.empty:
        return
    written = table(results)
    for ending, text in (("md", markdown(written)), ("tex", latex(written))):
        write_atomically(folder / f"{written.name}.{ending}", text.encode())
    tuning = results.finished[results.finished["grid"] == TUNING]
    palette = ["black", *(color for k, color in enumerate(seaborn.color_palette("colorblind")) if k != 7)]
    seeds = frame["seed"].nunique()
    with styled():
        canvas = new_canvas(7.5, 4.2)
        (left, right), handles = panels(canvas, 2, 2, sharey=True), []
        for method, color, marker in zip(METHODS, palette, "*os^DvPX", strict=False):
            part, settings = frame[frame["method"] == method], tuning[tuning["mitigation"].map(METHOD) == method]
            look = {"color": color, "marker": marker, "markersize": 9 if method == FULL else 5}
            curve = settings.sort_values("LA")
            line = right.plot(100 * curve["LA"], 100 * curve["retention"], linewidth=0.8, **look)[0]
            handles.append(line)
            if len(part):
                x, y = (seed_interval(100 * part[column].to_numpy()) for column in ("LA", "retention"))
                bars = {f"{axis}err": np.nan_to_num(i.half_width) for axis, i in (("x", x), ("y", y))}
                left.errorbar(x.mean, y.mean, **bars, elinewidth=0.8, capsize=2, linestyle="none", **look)
        left.set_ylabel("retention of capabilities (%)")
        left.set_title(f"chosen settings, n = {seeds} seeds")
        right.set_title("all four settings on the tuning tasks, one seed")
        for axis in (left, right):
            axis.set_xlabel("learning accuracy LA (points)")
        legend_below(canvas, handles, list(NAMES.values()))
        caption = (
            f"Left: mean over n = {seeds} seeds at the setting chosen on the tuning tasks; bars: 95% t interval over "
            "seeds. Right: the four settings of each method on the tuning tasks, one seed."
        )
        save(canvas, folder, "adaptation_paths", "Ways to adapt a pretrained model", caption)


STUDY = Study("adaptation_paths", CLAIMS, grids, conclude, draw, then)

if __name__ == "__main__":
    main(STUDY, __doc__)
