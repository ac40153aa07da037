"""Fine-tunes of the embedded model by real runs, saved as a user would have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.results import ResultStore
from forgetting.run import fine_tuned

REPLAY = "replay:fraction=0.5"


@dataclass(frozen=True)
class FineTunes:
    """Model folders: naive and replay learned to sort (a multiple-choice task), ``data`` holds items of it."""

    naive: Path
    replay: Path
    data: Path


@pytest.fixture(scope="session")
def fine_tunes(tmp_path_factory: pytest.TempPathFactory) -> FineTunes:
    folder = tmp_path_factory.mktemp("fine_tunes")
    study = StudyConfig(
        name="audit",
        sequence=SequenceConfig(name="micro-5", tasks=("sorting",), train_size=400, test_size=60),
        mitigations=("naive", REPLAY),
        training=TrainingConfig(learning_rate=1e-3, steps=30, batch_size=16, max_length=64),
        evaluation=EvaluationConfig(limit=1, drift=False),
        pretraining=PretrainingConfig(documents=300, held_out_documents=1, max_length=48),
    )
    store = ResultStore.create(folder / "study", study)
    for run, name in zip(study.runs(), ("naive", "replay"), strict=True):
        setting, model = fine_tuned(run, store)
        model.save_pretrained(folder / name)
        setting.base.tokenizer.save_pretrained(folder / name)
    (task,) = setting.sequence.tasks
    rows = [{"prompt": e.prompt, "completion": e.completion, "choices": list(e.choices or ())} for e in task.test]
    data = folder / "sorting.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    return FineTunes(folder / "naive", folder / "replay", data)
