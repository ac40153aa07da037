"""An option that nothing reads is a lie: every field of a study's configuration is read by a run, or changes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import forgetting.run as run_module
from forgetting.config import (
    ColumnMapping,
    EvaluationConfig,
    PretrainingConfig,
    RunConfig,
    SequenceConfig,
    Strict,
    StudyConfig,
    TaskConfig,
    TrainingConfig,
    parse_study,
)
from forgetting.mitigations import get_mitigation, mitigation_names
from forgetting.study import run_study
from forgetting.tasks.build import load_task
from forgetting.trainer import training_arguments

CONFIGURATIONS = (
    StudyConfig,
    RunConfig,
    SequenceConfig,
    TaskConfig,
    ColumnMapping,
    TrainingConfig,
    EvaluationConfig,
    PretrainingConfig,
)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, str]]]:
    """(class, field) of every attribute that is read; writing a configuration out reads none."""
    found: set[tuple[str, str]] = set()
    real = BaseModel.__getattribute__

    def watched(self: BaseModel, name: str) -> Any:
        found.add((type(self).__name__, name))
        return real(self, name)

    monkeypatch.setattr(Strict, "__getattribute__", watched, raising=False)
    yield found


def test_a_run_reads_every_field(tmp_path: Path, reads: set[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "own.jsonl"
    rows = [{"q": f"box {i}:", "a": " red", "c": [" red", " blue"]} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "own", "train": str(path), "columns": {"prompt": "q", "completion": "a", "choices": "c"}}
    values = {
        "name": "s",
        "sequence": {"name": "own", "tasks": [task]},
        "training": {"epochs": 0.2, "batch_size": 4, "max_length": 32},
        "evaluation": {"suite": "micro_facts", "limit": 2, "drift_tokens": 50},
        "pretraining": {"documents": 6, "held_out_documents": 1},
    }
    config = parse_study(values)
    (record,) = run_study(config, tmp_path / "s")
    assert record.status == "finished"
    run_module._setting.cache_clear()
    load_task(TaskConfig.model_validate({**task, "format": "hub"}))  # its own fields: subset, train_split, labels
    known = {
        (configuration.__name__, field) for configuration in CONFIGURATIONS for field in configuration.model_fields
    }
    # A study's fields become its runs': those of a run are what counts.
    handed_on = {("StudyConfig", field) for field in StudyConfig.model_fields if field in RunConfig.model_fields}
    handed_on.add(("StudyConfig", "name"))  # the command line's folder and the report's title: their own tests
    assert known - reads - handed_on == set()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.5),
        ("steps", 7),
        ("batch_size", 3),
        ("gradient_accumulation", 2),
        ("scheduler", "cosine"),
        ("warmup", 0.5),
        ("weight_decay", 0.5),
        ("max_grad_norm", 3.0),
        ("precision", "bf16"),
        ("gradient_checkpointing", True),
        ("epochs", 3.0),
    ],
)
def test_a_training_option_changes_what_the_trainer_is_told(field: str, value: object, tmp_path: Path) -> None:
    known = {*TrainingConfig.model_fields} - {"max_length", "packing"}  # of the features: tests/tasks/test_encode.py
    assert field in known and getattr(TrainingConfig(), field) != value
    changed = training_arguments(TrainingConfig.model_validate({field: value}), seed=0, output=str(tmp_path)).to_dict()
    assert changed != training_arguments(TrainingConfig(), seed=0, output=str(tmp_path)).to_dict()


def test_every_option_of_every_mitigation_is_read_in_its_file_or_its_base() -> None:
    package = Path(run_module.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    for name in mitigation_names():
        for field in get_mitigation(name).Options.model_fields:
            wanted = (f"options.{field}", f'"{field}"', f"o.{field}")
            assert any(any(text in source for text in wanted) for source in sources.values()), f"{name}:{field}"


def test_no_worker_can_draw_what_another_drew(tmp_path: Path) -> None:
    """The data are encoded before training: the loader has no workers, whose generators could be equal."""
    assert training_arguments(TrainingConfig(), seed=0, output=str(tmp_path)).dataloader_num_workers == 0
