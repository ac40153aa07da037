"""A fine-tune of the embedded model, by a short real run: made once per process."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetting.config import EvaluationConfig, PretrainingConfig, RunConfig, SequenceConfig, TrainingConfig
from forgetting.results import ResultStore
from forgetting.run import fine_tuned
from forgetting.tasks.task import Task


@dataclass(frozen=True)
class Tuned:
    base: PreTrainedModel
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    documents: list[str]


@cache
def tuned_micro() -> Tuned:
    """30 steps on a second language: enough to learn some, and to forget some."""
    config = RunConfig(
        model="micro",
        sequence=SequenceConfig(name="micro-5", tasks=("second_language",), test_size=60),
        mitigation="naive",
        seed=0,
        training=TrainingConfig(learning_rate=1e-3, steps=30, batch_size=8, max_length=64),
        evaluation=EvaluationConfig(limit=10, drift=False),
        pretraining=PretrainingConfig(documents=40, held_out_documents=40),
    )
    with tempfile.TemporaryDirectory() as folder:
        setting, model = fine_tuned(config, ResultStore(Path(folder)))
    return Tuned(
        setting.base.model,
        model,
        setting.base.tokenizer,
        setting.sequence.tasks[0],
        setting.pretraining.held_out["pretraining"],
    )
