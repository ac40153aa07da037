"""Few steps: stop each task early by a fixed share of the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options, Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from forgetting.tasks.task import Task


class FewStepsOptions(Options):
    """Options of few_steps."""

    fraction: float = Field(default=0.25, gt=0, le=1, description="share of the task's steps (or epochs) trained")
    after: int = Field(default=0, ge=0, description="the first tasks, so many, are trained for their whole budget")


class FewSteps(Mitigation[FewStepsOptions]):
    """Train each task for a fraction of its steps; the schedule is compressed, not cut.

    At a constant rate without warm-up the run is therefore the beginning of one with more steps.
    """

    summary: ClassVar[str] = "train each task for a fraction of its steps"
    paper: ClassVar[str] = "Kalajdzievski 2024, Scaling laws for forgetting, arXiv 2401.05605"
    equation: ClassVar[str] = "N ← ⌈fraction · N⌉"
    Options: ClassVar[type[Options]] = FewStepsOptions
    processes: ClassVar[Processes] = "sharded"
    null: ClassVar[dict[str, object] | None] = {"fraction": 1}

    def __init__(self, options: FewStepsOptions) -> None:
        super().__init__(options)
        self._whole = options.after > 0  # for a plan, which trains nothing: more steps than will be taken

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Note whether the task is one of the first."""
        self._whole = task.name in [first.name for first in self.context.tasks[: self.options.after]]
        return model

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Shorten the budget, to one step at least."""
        if self._whole:
            return args
        if args.max_steps > 0:
            args.max_steps = max(1, round(args.max_steps * self.options.fraction))
        else:
            args.num_train_epochs *= self.options.fraction
        return args
