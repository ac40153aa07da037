"""What the study is made of: tasks, capabilities, runs that did not finish, definitions, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from forgetting import metrics
from forgetting.analysis.stats import item_interval
from forgetting.report.cells import NONE, Table, number
from forgetting.report.style import plain
from forgetting.report.summary import base_stderr, capability_unit
from forgetting.results import Items, RunRecord

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "R",
        "task matrix: R[i, j] is the score on task j after training on the first i of T tasks; row 0 is the base "
        "model. Scores in [0, 1] are shown × 100, as points; a perplexity task's score is −ln(perplexity).",
    ),
    ("G", "capability matrix: the same rows, a column for each capability that the base model was probed for."),
    ("LA", "learning accuracy, (1/T) Σ_j R[j, j]: how well each task was learned, right after training on it."),
    ("ACC", "average accuracy, (1/T) Σ_j R[T, j]: the mean score over all tasks at the end."),
    (
        "forgetting",
        "1/(T−1) Σ_{j<T} (max_{j≤l<T} R[l, j] − R[T, j]): from each task's best score to its last one "
        "(Chaudhry et al. 2018). Undefined for one task.",
    ),
    (
        "BWT",
        "backward transfer, 1/(T−1) Σ_{j<T} (R[T, j] − R[j, j]): what later tasks did to earlier ones "
        "(Lopez-Paz & Ranzato 2017). Undefined for one task.",
    ),
    (
        "FWT",
        "forward transfer, 1/(T−1) Σ_{j>1} (R[j−1, j] − R[0, j]): what earlier tasks did to a task before it "
        "was trained on, against the base model. Undefined for one task.",
    ),
    (
        "retention",
        "(G[T, c] − chance_c) / (G[0, c] − chance_c), mean over capabilities: the share of the base model's "
        "skill above chance that is left at the end. Undefined where the base model is not above chance by two "
        "standard errors over items. Capabilities for which lower is better are left out.",
    ),
    ("ΔG", "mean over capabilities of G[T, c] − G[0, c] (TRACE, Wang et al. 2023)."),
    (
        "items lost, gained",
        "shares of items right before and wrong after, and the reverse, mean over capabilities. Adjusted for "
        "chance c: (share flipped) / (1 − c) − c (share wrong both times) / (1 − c)², 0 at least; what two "
        "independent rounds of guessing would flip is taken out.",
    ),
    ("ΔCE", "cross-entropy on held-out text at the end − that of the base model, nats per token."),
    (
        "KL",
        "KL(base‖tuned) at the end, mean over tokens, nats per token; on held-out text, and of the task trained on "
        "last on its inputs (task_inputs) and, of decoders, on its right answers (task_answers).",
    ),
    (
        "adapter off",
        "the same run with its adapter switched off: what is left in the weights below. Where adapters are "
        "merged after each task, that is the model before the last task.",
    ),
)


def _scored(score: float, outcomes: Sequence[float], share: bool) -> str:
    """A score with its interval over items, where its items are there and the score is their mean."""
    scale, digits = (100, 1) if share else (1, 3)
    text = number(scale * score, digits)
    if len(outcomes) and np.isclose(np.mean(outcomes), score):
        interval = item_interval(outcomes)
        if not np.isnan(interval.low):
            text += f" [{number(scale * interval.low, digits)}, {number(scale * interval.high, digits)}]"
    return text


def tasks(records: Sequence[RunRecord], items: Items) -> Table:
    """The sequence's tasks; the base model's scores are of the first record.

    Args:
        records: Of the study, at least one.
        items: Of the first of them.
    """
    first = records[0]
    outcomes = items["R"][0] if items["R"] else {}
    rows = []
    for j, task in enumerate(first.tasks):
        share = task.metric != "perplexity"
        done = [record.cost.tasks[j].truncated for record in records if len(record.cost.tasks) > j]
        notes = [f"{key.replace('_', ' ')}: {value}" for key, value in task.notes.items()]
        if any(done):
            notes.append(f"examples truncated in training: {max(done)}")
        base = _scored(first.R[0][j], outcomes.get(task.name, []), share) if first.rows else NONE
        rows.append(
            [
                plain(task.name),
                plain(task.metric) if share else "−ln(perplexity)",
                number(100 * task.chance) if share else NONE,
                str(task.n_train),
                str(task.n_validation),
                str(task.n_test),
                base,
                plain("; ".join(notes)) or NONE,
            ]
        )
    return Table(
        "tasks",
        "Tasks in the order in which they are learned. Chance and the base model's score in points, with its 95% "
        "interval over the test items (Wilson; BCa bootstrap where items are scored in between right and wrong).",
        ["task", "metric", "chance", "train", "validation", "test", "base model", "notes"],
        rows,
    )


def capabilities(finished: Mapping[str, Sequence[RunRecord]], first: RunRecord, items: Items) -> Table:
    """Every capability: the base model's score, and each mitigation's at the end.

    Args:
        finished: Finished runs per mitigation.
        first: A record of the study with at least the base model's row.
        items: Its per-item outcomes.
    """
    outcomes = items["G"][0] if items["G"] else {}
    stderr = base_stderr(first, items)
    chance = [capability.chance for capability in first.capabilities]
    known = ~np.isnan(metrics.retention([first.G[0], first.G[0]], chance, stderr))
    ends = {name: np.mean([record.G[-1] for record in records], axis=0) for name, records in finished.items()}
    rows = []
    for c, capability in enumerate(first.capabilities):
        measured = [first, *(record for records in finished.values() for record in records)]
        share = all(capability_unit(record, c) == "share" for record in measured)
        name = capability.name + (f" (version {capability.version})" if capability.version else "")
        rows.append(
            [
                plain(name),
                plain(capability.metric) + ("" if capability.higher_is_better else " (lower is better)"),
                str(capability.n),
                number(100 * capability.chance) if share else NONE,
                _scored(first.G[0][c], outcomes.get(capability.name, []), share),
                "yes" if known[c] and capability.higher_is_better else "no",
                *(number(float(100 * end[c]), 1) if share else number(float(end[c]), 3) for end in ends.values()),
            ]
        )
    return Table(
        "capability_scores",
        "Capabilities: the base model's score with its 95% interval over items, and the mean over finished seeds "
        "after the last task, per mitigation. Scores in [0, 1] in points. Counted: whether the base model is above "
        "chance by two standard errors, so that retention is defined.",
        ["capability", "metric", "n items", "chance", "base model", "counted", *map(plain, ends)],
        rows,
    )


def not_finished(frame: pd.DataFrame) -> Table | None:
    """Runs that failed, are unfinished or were not begun, with the reason; ``None`` where all finished."""
    left = frame[(frame["status"] != "finished") & (frame["view"] == "")]
    if left.empty:
        return None
    rows = [
        [
            plain(run["mitigation"]),
            str(run["seed"]),
            "unfinished" if run["status"] == "running" else str(run["status"]),
            NONE if pd.isna(run["tasks_done"]) else str(int(run["tasks_done"])),
            plain(run["reason"]) or NONE,
            str(run["run_id"]),
        ]
        for _, run in left.iterrows()
    ]
    return Table(
        "not_finished",
        "Runs without a result; they are left out of every mean.",
        ["mitigation", "seed", "status", "tasks done", "reason", "run"],
        rows,
    )


def provenance(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Where the numbers were made: every key with the distinct values over runs, in the order met."""
    found: dict[str, list[str]] = {}
    for record in records:
        for key, value in _flat("", record.provenance):
            text = plain(value)
            if text not in found.setdefault(key, []):
                found[key].append(text)
    for key in ("started",):
        if len(found.get(key, [])) > 1:
            found[key] = [f"{min(found[key])} (first run), {max(found[key])} (last run)"]
    return [(key, "; ".join(values)) for key, values in found.items()]


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix} {plain(key)}".strip(), inner)]
    if isinstance(value, list):
        return [(prefix, " ".join(map(str, value)))]
    return [(prefix, NONE if value is None else value)]
