"""Does an audit's advice predict what retraining gives? Edits of a finished fine-tune against the real remedies.

Papers: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903; Kirkpatrick et al.
2017, arXiv 1612.00796 (EWC); Hu et al. 2021, arXiv 2106.09685 (LoRA). None claims what is tested here. Command::

    forgetting study run audit_advice --scale laptop
    python experiments/audit_advice.py --draw --write-reliability   # what `forgetting audit` prints beside its advice

The embedded decoder is fine-tuned on one task at a time, at two rates; every fine-tune is audited
(:mod:`forgetting.audit.advice`), and trained again from the base model with the remedy that each edit stands for. What
an edit predicts is its retention (share of the base's skill on the probes) and its own task's score (nats per token of
its answers), what retraining gives are the remedy's. Correlations are partial, given the fine-tune's own value: changes
against the fine-tune would share its noise, and correlate however little an edit tells.
Interpolation at α stands for α times the learning rate; of WiSE-FT it is the definition. A Fisher mask and a strength
of EWC have no common scale: their correlation says more than their error. Replay has no edit: what it wins back of the
loss on general text is compared with the rise that the slopes ∇L·Δ foretell. Intervals are over fine-tunes, clustered
by task (five: few).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forgetting.audit.edits import Edit
from forgetting.audit.reliability import (
    Agreement,
    Estimate,
    Reliability,
    Remedy,
    Source,
    agreement,
    estimate,
    save_reliability,
)
from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.errors import UsageError
from forgetting.studies import Results, Scale, Study, main, scale_of, seeds_of, sized
from forgetting.verdicts import Claim, Outcome, Verdict, decide

if TYPE_CHECKING:
    from forgetting.audit.advice import Advice
    from forgetting.results import RunRecord

TASKS = ("new_facts", "routing", "sorting", "second_language", "formal")
RATES = {"mild": 5e-4, "harsh": 2e-3}
STEPS = 40
NAIVE, REPLAY = "naive", "replay:fraction=0.2"
EDITS: dict[str, Edit] = {
    "low_lr:factor=0.3": Edit("interpolation", 0.3),
    "freeze:first=2,embeddings=true": Edit("revert", layers=("embeddings", "block 0", "block 1")),
    "freeze:pattern=layers.[23]": Edit("revert", layers=("block 2", "block 3")),
    "lora:r=4": Edit("rank", 4),
    "ewc:strength=10000,examples=64,tasks=false": Edit("fisher", 0.1),
}
"""What stands for each remedy."""
TEXT = "pretraining"
DOCUMENTS = 64
"""General documents for the Fisher information and the slopes; others than those that the loss is measured on."""
SAME = 0.01
"""Largest difference in retention between a run and the same run again."""
ENOUGH = 0.5
"""A correlation above which an edit is called a guide."""
ASKED = {
    "low_lr:factor=0.3": "base + 0.3 Δ tells how much a fine-tune at 0.3 times the learning rate retains",
    "freeze:first=2,embeddings=true": "Reverting embeddings and the lower half tells how much freezing them retains",
    "freeze:pattern=layers.[23]": "Reverting the upper half tells how much freezing it retains",
    "lora:r=4": "Truncating Δ to rank 4 tells how much LoRA retains",
    "ewc:strength=10000,examples=64,tasks=false": "Reverting the weights of the greatest Fisher information tells how "
    "much EWC retains",
    REPLAY: "The slopes of the loss on general text tell what it is after replay",
}
OURS = "ours: the audit's own proxies"
CLAIMS = (
    *(
        Claim(
            remedy,
            f"{asked}, beyond what the fine-tune's own value tells: partial rank correlation above {ENOUGH:g}",
            OURS,
        )
        for remedy, asked in ASKED.items()
    ),
    Claim(
        "order",
        "Within a fine-tune, the edits put the remedies in the order of retention that retraining gives: mean rank "
        f"correlation above {ENOUGH:g}",
        OURS,
    ),
)


def grids(scale: Scale) -> dict[str, StudyConfig]:
    """A grid per task and rate: the fine-tune (naive), and what it is retrained with."""
    kept = 1 if scale == "smoke" else None

    def grid(task: str, rate: float) -> StudyConfig:
        config = StudyConfig(
            name="audit_advice",
            sequence=SequenceConfig(name="micro-5", tasks=(task,), test_size=60),
            mitigations=(NAIVE, *EDITS, REPLAY),
            seeds=seeds_of(scale),
            training=TrainingConfig(learning_rate=rate, steps=STEPS, batch_size=8, max_length=128),
            evaluation=EvaluationConfig(limit=40, drift_tokens=1500),
            pretraining=PretrainingConfig(documents=400, held_out_documents=100),
        )
        text = {"documents": 100, "held_out_documents": 20}
        return sized(config, scale, training={"steps": 2}, evaluation={"limit": 8}, pretraining=text)

    rates = list(RATES.items())[:kept]
    return {f"{task}-{label}": grid(task, rate) for task in TASKS[:kept] for label, rate in rates}


def audits(results: Results) -> Mapping[str, Callable[[], dict[str, Any]]]:
    """An audit per naive run, by its id: the same fine-tune again, whose weights the run did not keep."""
    return {
        record.run_id: partial(audit, record, results.folder / grid)
        for grid in results.grids
        for record in results.records(grid)
        if record.config.mitigation == NAIVE
    }


def audit(record: RunRecord, folder: Path) -> dict[str, Any]:
    """Train as the run did, and score every edit."""
    from forgetting.audit.advice import advise
    from forgetting.audit.edits import Change
    from forgetting.audit.weights import general_fisher
    from forgetting.evaluation.scores import TaskScorer
    from forgetting.evaluation.suite import Suite
    from forgetting.results import ResultStore
    from forgetting.run import fine_tuned
    from forgetting.tasks.encode import encode_texts
    from forgetting.trainer import padded_batches

    config = record.config
    setting, model = fine_tuned(config, ResultStore(folder))
    task, tokenizer = setting.sequence.tasks[0], setting.base.tokenizer
    documents, length = setting.pretraining.train[:DOCUMENTS], config.pretraining.max_length
    suite, batch_size = setting.evaluator.capabilities, config.evaluation.batch_size
    assert isinstance(suite, Suite)
    answers = TaskScorer(replace(task, metric="perplexity"), tokenizer, batch_size, config.training.max_length)
    advice = advise(
        Change(setting.base.model, model),
        lambda tuned: answers.score(tuned).items,
        suite,
        tokenizer,
        edits=list(EDITS.values()),
        fisher=general_fisher(
            setting.base.model, tokenizer, documents, max_length=length, max_examples=DOCUMENTS, seed=config.seed
        ),
        general=padded_batches(encode_texts(tokenizer, documents, length), tokenizer, 16),
        batch_size=batch_size,
    )
    assert advice.replay is not None
    check_retrained(record, ResultStore(folder).load_items(record.run_id)["G"], advice)
    return {
        "run_id": record.run_id,
        "points": {point.name: {"own": point.own, "retention": point.retention.mean} for point in advice.points},
        "slopes": {"at_base": advice.replay.at_base, "at_tuned": advice.replay.at_tuned, "rise": advice.replay.rise},
    }


def check_retrained(record: RunRecord, items: Sequence[Mapping[str, Sequence[float]]], advice: Advice) -> None:
    """Check that the fine-tune that was trained again is the run's: else its edits are of another one.

    Args:
        record: The run.
        items: Its outcomes on the capabilities, by row.
        advice: Of the fine-tune that was trained again.

    Raises:
        UsageError: if their retention differs by more than an item that flips.
    """
    from forgetting.audit.retained import retained as retention

    chance = {info.name: info.chance for info in record.capabilities if info.name in advice.capabilities}
    before, after = ({name: row[name] for name in chance} for row in (items[0], items[-1]))
    stored, again = retention(before, after, chance).mean, advice.points[1].retention.mean
    if not abs(stored - again) <= SAME:
        raise UsageError(
            f"run {record.run_id}: retains {stored:.3f}, and trained again {again:.3f}; run the study again on one "
            "machine, with one version of the libraries"
        )


def retrained(results: Results, grid: str) -> dict[tuple[str, int], dict[str, float]]:
    """Own score, retention and loss on general text of every run, by mitigation and seed."""
    from forgetting.audit.retained import retained as retention

    found = {}
    for record in results.records(grid):
        items = results.store(grid).load_items(record.run_id)["G"]
        chance = {info.name: info.chance for info in record.capabilities}
        found[record.config.mitigation, record.config.seed] = {
            "own": -record.rows[-1].drift["task_answers"].ce,
            "retention": retention(items[0], items[-1], chance).mean,
            "loss": record.rows[-1].drift[TEXT].ce,
        }
    return found


def comparisons(results: Results) -> pd.DataFrame:
    """A row per fine-tune and remedy: as predicted, as retrained, and of the fine-tune itself; greater is better."""
    rows = []
    for grid in results.grids:
        runs = retrained(results, grid)
        for record in results.records(grid):
            if record.config.mitigation != NAIVE:
                continue
            seed, task = record.config.seed, record.tasks[0].name
            audited = results.measured(record.run_id)
            tuned, plain = audited["points"]["tuned"], runs[NAIVE, seed]
            about = {"fine_tune": record.run_id, "task": task, "setting": grid, "seed": seed}
            for remedy, edit in EDITS.items():
                if (remedy, seed) in runs:
                    point, run = audited["points"][edit.name], runs[remedy, seed]
                    values = {f"predicted_{m}": point[m] for m in ("retention", "own")}
                    values |= {f"retrained_{m}": run[m] for m in ("retention", "own")}
                    values |= {f"tuned_{m}": tuned[m] for m in ("retention", "own")}
                    rows.append({**about, "remedy": remedy, "kind": edit.kind, **values})
            if (REPLAY, seed) in runs:
                values = {
                    "predicted_retention": audited["slopes"]["rise"] - plain["loss"],
                    "retrained_retention": -runs[REPLAY, seed]["loss"],
                    "tuned_retention": -plain["loss"],
                }
                rows.append({**about, "remedy": REPLAY, "kind": "replay", **values})
    return pd.DataFrame(rows)


def agreements(frame: pd.DataFrame) -> dict[str, Remedy]:
    """The agreement with retraining of every remedy of which there are runs."""

    def of(part: pd.DataFrame, measure: str) -> Agreement:
        predicted, retrained, tuned = (list(part[f"{w}_{measure}"]) for w in ("predicted", "retrained", "tuned"))
        return agreement(predicted, retrained, tuned, list(part["task"]))

    found = {}
    for remedy in ASKED:
        part = frame[frame["remedy"] == remedy]
        if part.empty:
            continue
        kind: Source = part["kind"].iloc[0]
        own = None if kind == "replay" else of(part, "own")
        found[remedy] = Remedy(kind=kind, retention=of(part, "retention"), own=own)
    return found


def order(frame: pd.DataFrame) -> Estimate:
    """Mean over fine-tunes of the rank correlation over remedies, where these differ in retention."""
    from scipy import stats

    from forgetting.analysis.stats import item_interval

    correlations, tasks = [], []
    for _, part in frame[frame["kind"] != "replay"].groupby("fine_tune", sort=False):
        pair = part["predicted_retention"], part["retrained_retention"]
        if all(values.nunique() > 1 for values in pair):
            correlations.append(float(stats.spearmanr(*pair).statistic))
            tasks.append(part["task"].iloc[0])
    if not correlations:
        return estimate(float("nan"))
    interval = item_interval(correlations, clusters=tasks)
    return estimate(interval.mean, interval.low, interval.high)


def conclude(results: Results) -> list[Verdict]:
    """Rank correlations against what is asked of a guide."""
    frame = comparisons(results)
    found, n = agreements(frame), frame["fine_tune"].nunique()
    how = f"95% over {n} fine-tunes, clustered by {frame['task'].nunique()} tasks"
    verdicts = []
    for remedy, agreed in found.items():
        unit, scale = ("nats per token", 1) if agreed.kind == "replay" else ("points", 100)
        bias, error = (_shown(each, scale) for each in (agreed.retention.bias, agreed.retention.error))
        ours = f"{_shown(agreed.retention.rank)}; bias {bias}, mean error {error} {unit} ({how})"
        verdicts.append(Verdict(remedy, _outcome(agreed.retention.rank), ours))
    whole = order(frame)
    return [*verdicts, Verdict("order", _outcome(whole), f"{_shown(whole)} ({how})")]


def _shown(found: Estimate, scale: float = 1.0) -> str:
    if found.value is None:
        return "undefined"
    if found.low is None or found.high is None:
        return f"{scale * found.value:.2g} (no interval)"
    return f"{scale * found.value:.2g} ({scale * found.low:.2g} to {scale * found.high:.2g})"


def _outcome(found: Estimate) -> Outcome:
    from types import SimpleNamespace

    if found.low is None or found.high is None:
        return "undecided"
    return decide(SimpleNamespace(low=found.low, high=found.high), ENOUGH)


def reliability(results: Results, scale: Scale) -> Reliability:
    """What ``forgetting audit`` prints beside its advice.

    Raises:
        UsageError: if a run or a measurement is missing.
    """
    from forgetting.provenance import provenance

    if results.missing or STUDY.unmeasured(results):
        raise UsageError("write-reliability: runs or measurements are missing; run the study to its end first")
    frame = comparisons(results)
    about = {
        "study": STUDY.name,
        "scale": scale,
        "command": f"forgetting study run {STUDY.name} --scale {scale}",
        "model": next(iter(results.grids.values())).model,
        **provenance({}),
    }
    return Reliability(
        remedies=agreements(frame),
        order=order(frame),
        fine_tunes=frame["fine_tune"].nunique(),
        tasks=frame["task"].nunique(),
        provenance=about,
    )


def draw(results: Results, folder: Path) -> None:
    """Retrained over predicted values, a panel per remedy."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    if results.missing or STUDY.unmeasured(results):
        return
    frame = comparisons(results)
    found = agreements(frame)
    colors = dict(zip(TASKS, seaborn.color_palette("colorblind"), strict=False))
    with styled():
        canvas = new_canvas(9.0, 6.6)
        handles: dict[str, Any] = {}
        for axis, (remedy, agreed) in zip(panels(canvas, len(found), 3), found.items(), strict=True):
            unit = 1 if agreed.kind == "replay" else 100
            part = frame[frame["remedy"] == remedy]
            for task, points in part.groupby("task", sort=False):
                x, y = unit * points["predicted_retention"], unit * points["retrained_retention"]
                (handles[str(task)],) = axis.plot(x, y, "o", color=colors[str(task)], markersize=4, alpha=0.8)
            both = unit * part[["predicted_retention", "retrained_retention"]].to_numpy()
            ends = [float(np.min(both)), float(np.max(both))]
            axis.plot(ends, ends, color="0.4", linestyle="--", linewidth=1)
            axis.set_title(
                f"{remedy.partition(',')[0]}\npartial rank {_shown(agreed.retention.rank)}", fontsize="small"
            )
            what = "−loss (nats per token)" if agreed.kind == "replay" else "retention (%)"
            axis.set(xlabel=f"predicted {what}", ylabel="retrained")
        legend_below(canvas, list(handles.values()), list(handles))
        n = frame["fine_tune"].nunique()
        canvas.suptitle(f"Advice without retraining against retraining, n = {n} fine-tunes")
        caption = (
            f"A point per fine-tune (n = {n}) and remedy; dashed: equal. In brackets: 95% interval of the "
            "partial rank correlation given the fine-tune's own value, jackknife over tasks."
        )
        save(canvas, folder, "audit_advice", "Advice without retraining against retraining", caption)


MEASURED_WITH = {"edits": EDITS, "documents": DOCUMENTS}
STUDY = Study("audit_advice", CLAIMS, grids, conclude, draw, measure=audits, measured_with=MEASURED_WITH)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--write-reliability", action="store_true")
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--output", type=Path, default=Path("results"))
    own, _ = parser.parse_known_args()
    sys.argv = [argument for argument in sys.argv if argument != "--write-reliability"]
    main(STUDY, __doc__)
    if own.write_reliability:
        try:
            save_reliability(reliability(STUDY.results(own.output, scale_of(own.scale)), scale_of(own.scale)))
        except UsageError as error:
            sys.exit(f"error: {error}")
