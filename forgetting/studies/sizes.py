"""What a scale makes of a grid: how many seeds it has, and what is small at ``smoke``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from forgetting.studies.study import Scale

if TYPE_CHECKING:
    from forgetting.config import StudyConfig

SMOKE: dict[str, dict[str, Any]] = {
    "sequence": {"train_size": 32, "test_size": 8},
    "training": {"steps": 3},
    "evaluation": {"limit": 4, "drift_tokens": 200},
}
"""What ``smoke`` changes in every grid, by part of the configuration."""


def seeds_of(scale: Scale, *, laptop: int = 3, gpu: int = 10) -> tuple[int, ...]:
    """Seeds 0, 1, … of a scale's runs, one at ``smoke``.

    Args:
        scale: Whose.
        laptop: How many that one has.
        gpu: The same.
    """
    return tuple(range({"smoke": 1, "laptop": laptop, "gpu": gpu}[scale]))


def sized(config: StudyConfig, scale: Scale, *, tasks: int | None = None, **parts: Mapping[str, Any]) -> StudyConfig:
    """A grid at a scale: the configuration as it stands, or at ``smoke`` one that takes seconds.

    ``SMOKE`` leaves the steps alone where a task is trained for epochs, and the drift's tokens where none is measured.

    Args:
        config: Of the other scales.
        scale: For which it is.
        tasks: How many of its tasks ``smoke`` has; where not given, all.
        parts: What ``smoke`` changes besides :data:`SMOKE`, or otherwise: ``training={"steps": 2}``.

    Raises:
        ValidationError: pydantic's, if a part has no such key, or a value is none.
    """
    if scale != "smoke":
        return config
    changes = {part: dict(values) for part, values in SMOKE.items()}
    if config.training.steps is None:
        del changes["training"]["steps"]
    if not config.evaluation.drift:
        del changes["evaluation"]["drift_tokens"]
    if tasks is not None and config.sequence.tasks is not None:
        changes["sequence"]["tasks"] = config.sequence.tasks[:tasks]
    for part, values in parts.items():
        changes[part] = changes.get(part, {}) | dict(values)
    small = {}
    for part, values in changes.items():
        whole = getattr(config, part)
        small[part] = type(whole).model_validate(dict(whole) | values)
    return config.model_copy(update=small)
