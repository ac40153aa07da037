"""Learning without forgetting: on the task's own inputs, keep the predictions of the model before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.distributed import union
from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from forgetting.mitigations.base import RunContext
    from forgetting.tasks.task import Task


class LwFOptions(Options):
    """Options of lwf."""

    strength: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="λ, per nat and predicted token; 0 switches it off"
    )
    temperature: float = Field(default=2.0, gt=0, description="T, that divides both models' logits")


class LwF(Mitigation[LwFOptions]):
    """The teacher is the model before this task, for the first task the pretrained one, in eval mode.

    Where tasks add heads, the old ones are distilled on the new task's inputs, as in the paper: the pretrained one,
    where there is one, and those that tasks before this one used; the sum over heads is added. A model that writes has
    one output layer, so that the same tokens' targets and the teacher's predictions are weighed against each other.
    """

    summary: ClassVar[str] = "distil from the model before the task, on the task's inputs"
    paper: ClassVar[str] = "Li & Hoiem 2016, Learning without forgetting, arXiv 1606.09282"
    equation: ClassVar[str] = "L + λ T² KL(softmax(f_before(x) / T) ‖ softmax(f(x) / T)), mean over predicted tokens"
    cost: ClassVar[str] = "1 forward pass per step; a copy of the model while a task is trained"
    Options: ClassVar[type[Options]] = LwFOptions
    null: ClassVar[dict[str, Any] | None] = {"strength": 0}
    resumes_within_task: ClassVar[bool] = True

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Begin with the pretrained head as the only old one, where there are heads."""
        from forgetting.distillation import task_heads

        heads = task_heads(model)
        self._old = {0} if heads is not None and heads.own else set[int]()
        return super().setup(model, context)

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Keep the model as it is."""
        from forgetting.distillation import frozen_copy, task_heads

        if self.options.strength > 0:
            self._met: set[int] = set()
            if (heads := task_heads(model)) is not None:
                heads.watched |= self._old
            self._teacher = frozen_copy(model)
        return model

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add the distance from the teacher's predictions."""
        from forgetting.distillation import (
            kl_divergence,
            predicted_logits,
            task_heads,
            teach,
            watched_divergence,
        )

        if self.options.strength == 0:
            return loss
        temperature = self.options.temperature
        if task_heads(self._teacher) is not None:
            self._met |= {head for head in batch["head"].tolist() if head >= 0}
            if not self._old:
                return loss
            distance = watched_divergence(self._teacher, outputs, batch, self._old, temperature=temperature)
        else:
            taught, learned = teach(self._teacher, batch), predicted_logits(outputs.logits, batch["labels"])
            distance = kl_divergence(taught, learned, temperature=temperature)
        return loss + self.options.strength * distance

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Let the teacher go; the task's head is an old one from now on."""
        if self.options.strength > 0:
            self._old |= union(self._met)
            del self._teacher
        return model

    def task_state(self) -> dict[str, Tensor]:
        """The heads that the task uses, as far as it was seen."""
        import torch

        return {"met": torch.tensor(sorted(self._met), dtype=torch.long)} if self.options.strength > 0 else {}

    def load_task_state(self, state: dict[str, Tensor]) -> None:
        """Restore."""
        if state:
            self._met = set(state["met"].tolist())

    def state_dict(self) -> dict[str, Tensor]:
        """The old heads."""
        import torch

        return {"old": torch.tensor(sorted(self._old))} if self._old else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore."""
        if state:
            self._old = set(state["old"].tolist())
