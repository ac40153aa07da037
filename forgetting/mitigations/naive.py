"""Naive sequential fine-tuning: the baseline to beat."""

from __future__ import annotations

from typing import ClassVar

from forgetting.mitigations.base import Mitigation, Options, Processes


class Naive(Mitigation[Options]):
    """Fine-tune on each task in turn and do nothing else."""

    summary: ClassVar[str] = "sequential fine-tuning without mitigation, the baseline"
    paper: ClassVar[str] = "McCloskey & Cohen 1989, Catastrophic interference in connectionist networks"
    equation: ClassVar[str] = "θ ← θ − η ∇L_task(θ)"
    processes: ClassVar[Processes] = "sharded"
    null: ClassVar[dict[str, object] | None] = {}
