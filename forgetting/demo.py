"""The demo's study: the embedded model, five tasks, every headline mitigation."""

from __future__ import annotations

from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig

MITIGATIONS = (
    "naive",
    "low_lr:factor=0.3",
    "few_steps:fraction=0.5",
    "replay:fraction=0.25",
    "ewc:strength=8000",
    "freeze:all_but_last=2",
    "lora:r=16,lr_factor=5",
    "replay:fraction=0.1+ewc:strength=1000",
    "replay:fraction=0.2,source=both+ewc:strength=1000,tasks=false",
)


def demo_study(seeds: int) -> StudyConfig:
    """The demo with so many seeds."""
    return StudyConfig(
        name="demo",
        model="micro",
        sequence=SequenceConfig(name="micro-5", test_size=100),
        mitigations=MITIGATIONS,
        seeds=tuple(range(seeds)),
        training=TrainingConfig(learning_rate=1e-3, steps=100, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(suite=("micro",), limit=100, drift_tokens=5000),
    )
