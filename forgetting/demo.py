"""The demo's study: the embedded model, five tasks, every headline mitigation."""

from __future__ import annotations

from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig

MITIGATIONS = (
    "naive",
    "low_lr:factor=0.1",
    "few_steps:fraction=0.25",
    "early_stopping:metric=pretraining",
    "replay:fraction=0.1",
    "ewc:strength=1000",
    "freeze:all_but_last=1",
    "lora:r=8",
    "replay:fraction=0.1+low_lr:factor=0.3",
)


def demo_study(seeds: int) -> StudyConfig:
    """The demo with so many seeds."""
    return StudyConfig(
        name="demo",
        model="micro",
        sequence=SequenceConfig(name="micro-5"),
        mitigations=MITIGATIONS,
        seeds=tuple(range(seeds)),
        training=TrainingConfig(learning_rate=1e-3, steps=100, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(suite=("micro",)),
    )
