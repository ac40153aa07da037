"""Few steps: stop each task early by a fixed share of the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    from transformers import TrainingArguments


class FewStepsOptions(Options):
    """Options of few_steps."""

    fraction: float = Field(default=0.25, gt=0, le=1, description="share of the task's steps (or epochs) trained")


class FewSteps(Mitigation[FewStepsOptions]):
    """Train each task for a fraction of its steps; the schedule is compressed, not cut."""

    summary: ClassVar[str] = "train each task for a fraction of its steps"
    paper: ClassVar[str] = "Kalajdzievski 2024, Scaling laws for forgetting, arXiv 2401.05605"
    equation: ClassVar[str] = "N ← ⌈fraction · N⌉"
    Options: ClassVar[type[Options]] = FewStepsOptions
    null: ClassVar[dict[str, object] | None] = {"fraction": 1}

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Shorten the budget, to one step at least."""
        if args.max_steps > 0:
            args.max_steps = max(1, round(args.max_steps * self.options.fraction))
        else:
            args.num_train_epochs *= self.options.fraction
        return args
