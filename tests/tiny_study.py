"""A study that takes seconds: two runs over two tasks of the embedded world."""

from __future__ import annotations

from forgetting.config import StudyConfig, parse_study


def tiny_study(**changes: object) -> StudyConfig:
    """The study, or one that differs from it in the keys given."""
    values: dict = {
        "name": "tiny",
        "sequence": {"name": "micro-5", "tasks": ["new_facts", "sorting"], "train_size": 16, "test_size": 8},
        "mitigations": ["naive", "low_lr:factor=0.5"],
        "training": {"steps": 2, "batch_size": 4, "max_length": 96},
        "evaluation": {"suite": "micro", "limit": 4, "drift_tokens": 200},
        "pretraining": {"documents": 20, "held_out_documents": 4},
    }
    return parse_study(values | changes)
