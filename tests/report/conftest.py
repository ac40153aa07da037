"""Synthetic studies with plausible numbers, written through ResultStore."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from forgetting.config import EvaluationConfig, RunConfig, SequenceConfig, StudyConfig
from forgetting.results import (
    CapabilityInfo,
    Cost,
    Items,
    ResultStore,
    Row,
    RunRecord,
    TaskCost,
    TaskInfo,
    TextDrift,
)

TASKS = ("agreement", "people", "sums", "reverse_copy", "reviews")
CAPABILITIES = (
    "micro_arithmetic",
    "micro_copying",
    "micro_facts",
    "micro_grammar",
    "micro_instructions",
    "micro_patterns",
    "micro_sentiment",
    "micro_translation",
)
MITIGATIONS = (
    "naive",
    "low_lr:factor=0.1",
    "replay:fraction=0.1",
    "ewc:strength=1000",
    "lora:r=8",
    "replay:fraction=0.1+low_lr:factor=0.3",
)
# how much of what could be learned is learned, and how much of what could be lost is lost, per method
LEARNS = {"naive": 0.95, "low_lr": 0.55, "replay": 0.92, "ewc": 0.7, "lora": 0.85}
LOSES = {"naive": 0.9, "low_lr": 0.25, "replay": 0.3, "ewc": 0.35, "lora": 0.6}


def _strengths(mitigation: str) -> tuple[float, float]:
    parts = [part.split(":")[0] for part in mitigation.split("+")]
    jitter = 1 - 0.1 * (zlib.crc32(mitigation.encode()) % 100) / 100
    learn = min(LEARNS.get(part, 0.8) for part in parts) * jitter
    return learn, min(LOSES.get(part, 0.5) for part in parts) * jitter


def _record(
    run: RunConfig, study: str, tasks: Sequence[str], capabilities: Sequence[str], rows: int, perplexity: bool
) -> tuple[RunRecord, Items]:
    learn, lose = _strengths(run.mitigation)
    generator = np.random.default_rng([zlib.crc32(run.mitigation.encode()), run.seed])
    shared = np.random.default_rng(5)
    chance = np.array([(0.25, 0.5)[c % 2] for c in range(len(capabilities))])
    skill = shared.uniform(0.4, 0.95, len(capabilities))
    skill[-1] = 0.0  # the base model cannot do the last one: its retention is undefined
    n_items = 120
    luck, forget = shared.random((len(capabilities), n_items)), generator.random((len(capabilities), n_items))
    T = len(tasks)
    start = shared.uniform(0.1, 0.4, T)
    record_rows: list[Row] = []
    items: Items = {"R": [], "G": []}
    for i in range(rows):
        lost = lose * (1 - np.exp(-0.7 * i))
        known = luck < (chance + (1 - chance) * skill)[:, None]
        guessed = forget < lost
        outcomes = np.where(guessed, generator.random(known.shape) < chance[:, None], known).astype(float)
        G = outcomes.mean(axis=1)
        R = start.copy()
        for j in range(T):
            if j < i:
                peak = start[j] + (0.97 - start[j]) * learn
                R[j] = peak - (peak - start[j]) * lose * (1 - np.exp(-0.4 * (i - 1 - j)))
            elif i:
                R[j] = start[j] + 0.02 * generator.normal()
        R = np.clip(R + (0.015 * generator.normal(size=T) if i else 0), 0, 1)
        if perplexity:
            R[-1] = -1.5 + R[-1]
        ce = 1.3 + 1.4 * lost * (1 + 0.05 * generator.normal())
        drift = {
            "pretraining": TextDrift(
                ce=ce, bpb=ce, kl_forward=0.9 * (ce - 1.3), kl_reverse=1.1 * (ce - 1.3), tokens=20000
            )
        }
        if i:
            drift["task_inputs"] = TextDrift(ce=1.0, bpb=1.0, kl_forward=0.8, kl_reverse=0.7, tokens=4000)
        views = {}
        if run.mitigation.startswith("lora") and i:
            views["adapter_off"] = {"R": list(0.5 * (R + start)), "G": [float(g) for g in known.mean(axis=1)]}
        record_rows.append(
            Row(R=list(R), G=list(G), drift=drift, views=views, weight_change={}, evaluation_seconds=1.5)
        )
        items["R"].append({task: [float(R[j])] * 3 for j, task in enumerate(tasks)})
        items["G"].append({name: list(outcomes[c]) for c, name in enumerate(capabilities)})
    replay = "replay" in run.mitigation
    done = [
        TaskCost(
            task=task,
            steps=100,
            tokens={"task": 60_000, "pretraining": 6_000 if replay else 0},
            examples={"task": 1440 if replay else 1600, "pretraining": 160 if replay else 0},
            truncated=j,
            flops=4.2e11,
            seconds=11.0 + float(generator.random()),
            train_loss=0.4,
            log=[(1, 2.0), (100, 0.4)],
        )
        for j, task in enumerate(tasks[: rows - 1])
    ]
    record = RunRecord(
        run_id=run.run_id,
        study=study,
        config=run,
        config_hash=run.hash,
        status="finished" if rows == T + 1 else "running",
        provenance={
            "package": "0.1.0",
            "libraries": {"torch": "2.14.0", "transformers": "5.23.0"},
            "python": "3.11.2",
            "git": {"commit": "0123456789abcdef", "dirty": False},
            "hardware": {"processor": "A Processor", "cores": 2, "threads": 1, "gpu": None},
            "command": ["forgetting", "run", "my study.yaml"],
            "started": "2026-01-01T00:00:00+00:00",
        },
        tasks=[
            TaskInfo(
                name=name,
                metric="perplexity" if perplexity and j == T - 1 else "accuracy",
                chance=0.0 if perplexity and j == T - 1 else 0.25,
                n_train=2000,
                n_validation=200,
                n_test=300,
                notes={"duplicates between train and test": 4} if j == 1 else {},
            )
            for j, name in enumerate(tasks)
        ],
        capabilities=[
            CapabilityInfo(name=name, metric="acc", chance=float(chance[c]), n=n_items, version="1.0")
            for c, name in enumerate(capabilities)
        ],
        rows=record_rows,
        cost=Cost(
            tasks=done,
            setup_seconds=0.5,
            peak_memory_bytes=700_000_000,
            parameters=1_050_000,
            trainable_parameters=45_000 if run.mitigation.startswith("lora") else 1_050_000,
            stored_floats=2_100_000 if run.mitigation.startswith("ewc") else 0,
        ),
    )
    return record, items


MakeStudy = Callable[..., ResultStore]


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Write a study; the keyword arguments say what is unusual about it."""
    return lambda **options: write_study(tmp_path / "a-study", **options)


def write_study(
    folder: Path,
    *,
    mitigations: Sequence[str] = MITIGATIONS,
    seeds: Sequence[int] = (0, 1, 2),
    tasks: Sequence[str] = TASKS,
    capabilities: Sequence[str] = CAPABILITIES,
    failed: Mapping[tuple[str, int], str] = {},
    unfinished: Mapping[tuple[str, int], int] = {},
    not_begun: Sequence[tuple[str, int]] = (),
    with_items: bool = True,
    perplexity: bool = False,
) -> ResultStore:
    """``failed`` gives reasons, ``unfinished`` the rows that are there, per (mitigation, seed)."""
    config = StudyConfig(
        name="a-study",
        mitigations=tuple(mitigations),
        seeds=tuple(seeds),
        sequence=SequenceConfig(name="a-sequence"),
        evaluation=EvaluationConfig(suite=("micro",)),
    )
    store = ResultStore.create(folder, config)
    for run in config.runs():
        key = (run.mitigation, run.seed)
        if key in not_begun:
            continue
        rows = unfinished.get(key, 3 if key in failed else len(tasks) + 1)
        record, items = _record(run, "a-study", tasks, capabilities, rows, perplexity)
        if key in failed:
            record.status, record.reason = "failed", failed[key]
        store.save(record, items if with_items else None)
    return store
