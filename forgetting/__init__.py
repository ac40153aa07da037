"""Measure and mitigate catastrophic forgetting of pretrained models.

Public names are imported when first used: ``import forgetting`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "StudyConfig": "forgetting.config",
    "RunConfig": "forgetting.config",
    "run_study": "forgetting.study",
    "run_sequence": "forgetting.run",
    "load_model": "forgetting.models",
    "Mitigation": "forgetting.mitigations",
    "Options": "forgetting.mitigations",
    "EWC": "forgetting.mitigations.ewc",
    "Replay": "forgetting.mitigations.replay",
    "LoRA": "forgetting.mitigations.lora",
    "ResultStore": "forgetting.results",
    "RunRecord": "forgetting.results",
    "Example": "forgetting.tasks.task",
    "Task": "forgetting.tasks.task",
    "DiagonalFisher": "forgetting.fisher",
    "diagonal_fisher": "forgetting.fisher",
    "kfac_fisher": "forgetting.fisher",
    "EWCPlugin": "forgetting.avalanche",
    "write_report": "forgetting.report",
}

__all__ = [*_PUBLIC, "metrics"]  # every name is a string


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("forgetting.metrics")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'forgetting' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
