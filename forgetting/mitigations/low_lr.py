"""A low learning rate: a multiple of the study's base rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options, Processes

if TYPE_CHECKING:
    from transformers import TrainingArguments


class LowLROptions(Options):
    """Options of low_lr."""

    factor: float = Field(default=0.1, gt=0, description="multiple of the base learning rate")


class LowLR(Mitigation[LowLROptions]):
    """Scale the peak learning rate; steps and schedule stay.

    The rise of the pretraining loss grows with the distance moved, which the rate bounds.
    """

    summary: ClassVar[str] = "fine-tune at a multiple of the base learning rate"
    paper: ClassVar[str] = "Howard & Ruder 2018, ULMFiT, arXiv 1801.06146; Biderman et al. 2024, arXiv 2405.09673"
    equation: ClassVar[str] = "η ← factor · η"
    Options: ClassVar[type[Options]] = LowLROptions
    processes: ClassVar[Processes] = "sharded"
    null: ClassVar[dict[str, object] | None] = {"factor": 1}

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Scale the rate."""
        args.learning_rate *= self.options.factor
        return args
