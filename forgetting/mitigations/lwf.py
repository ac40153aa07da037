"""Learning without forgetting: on the task's own inputs, keep the predictions of the model before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class LwFOptions(Options):
    """Options of lwf."""

    strength: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="λ, per nat and predicted token; 0 switches it off"
    )
    temperature: float = Field(default=2.0, gt=0, description="T, that divides both models' logits")


class LwF(Mitigation[LwFOptions]):
    """The teacher is the model before this task, for the first task the pretrained one, in eval mode.

    In the paper every task has an output layer of its own, and the old ones are distilled; a language model has one
    output layer, so that the same tokens' targets and the teacher's predictions are weighed against each other.
    """

    summary: ClassVar[str] = "distil from the model before the task, on the task's inputs"
    paper: ClassVar[str] = "Li & Hoiem 2016, Learning without forgetting, arXiv 1606.09282"
    equation: ClassVar[str] = "L + λ T² KL(softmax(f_before(x) / T) ‖ softmax(f(x) / T)), mean over predicted tokens"
    cost: ClassVar[str] = "1 forward pass per step; a copy of the model while a task is trained"
    Options: ClassVar[type[Options]] = LwFOptions
    null: ClassVar[dict[str, Any] | None] = {"strength": 0}

    def check_model(self, model: PreTrainedModel) -> None:
        """One head must predict on all tasks."""
        from forgetting.distillation import refuse_new_heads

        if self.options.strength > 0:
            refuse_new_heads("lwf", model)

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Keep the model as it is."""
        from forgetting.distillation import frozen_copy

        if self.options.strength > 0:
            self._teacher = frozen_copy(model)
        return model

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add the distance from the teacher's predictions."""
        from forgetting.distillation import kl_divergence, predicted_logits, teach

        if self.options.strength == 0:
            return loss
        taught, learned = teach(self._teacher, batch), predicted_logits(outputs.logits, batch["labels"])
        return loss + self.options.strength * kl_divergence(taught, learned, temperature=self.options.temperature)

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Let the teacher go."""
        if self.options.strength > 0:
            del self._teacher
        return model
