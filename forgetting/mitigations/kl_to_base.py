"""KL to the base model: stay near the pretrained model's predictions, on the task's inputs or on other text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class KLToBaseOptions(Options):
    """Options of kl_to_base."""

    strength: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="λ, per nat and predicted token; 0 switches it off"
    )
    direction: Literal["forward", "reverse"] = Field(
        default="forward", description="forward: KL(base ‖ model); reverse: KL(model ‖ base), as in RLHF"
    )
    on: Literal["task", "text"] = Field(
        default="task", description="where: the task's own batches, or pretraining text in minibatches beside them"
    )


class KLToBase(Mitigation[KLToBaseOptions]):
    """The teacher is the pretrained model, in eval mode, for all tasks.

    With ``on=text`` a minibatch of pretraining text (its train split) of the task's batch size goes with every batch;
    nothing of it but the teacher's predictions is learned. Where gradients are computed again (``sam``), another
    minibatch is drawn. Where tasks add heads, ``on=task`` compares the pretrained head's predictions.
    """

    summary: ClassVar[str] = "KL divergence to the pretrained model, on the task's inputs or on pretraining text"
    paper: ClassVar[str] = (
        "Ziegler et al. 2019, Fine-tuning language models from human preferences, arXiv 1909.08593; Shenfeld et al. "
        "2025, RL's razor"
    )
    equation: ClassVar[str] = "L + λ KL(p_0(· | x) ‖ p_θ(· | x)), mean over predicted tokens; reverse: of (p_θ ‖ p_0)"
    cost: ClassVar[str] = (
        "1 forward pass per step, with on=text 2 and a backward pass; 1 float per parameter of the model"
    )
    Options: ClassVar[type[Options]] = KLToBaseOptions
    null: ClassVar[dict[str, Any] | None] = {"strength": 0}
    resumes_within_task: ClassVar[bool] = True

    def __init__(self, options: KLToBaseOptions) -> None:
        super().__init__(options)
        if options.on == "text":  # a minibatch of it is drawn
            self.processes = "one"  # type: ignore[misc]

    def check_model(self, model: PreTrainedModel) -> None:
        """The pretrained model must predict something on a task's inputs."""
        from forgetting.distillation import task_heads

        heads = task_heads(model) if self.options.strength > 0 and self.options.on == "task" else None
        if heads is not None and not heads.own:
            raise UsageError(
                "mitigation 'kl_to_base': on=task compares with what the pretrained model predicts on a task's inputs, "
                "and its head is new with the task; give on=text"
            )

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Keep the pretrained model, and encode the text."""
        from forgetting.distillation import frozen_copy, task_heads

        super().setup(model, context)
        if self.options.strength > 0:
            if self.options.on == "task" and (heads := task_heads(model)) is not None:
                heads.watched.add(0)
            self._teacher = frozen_copy(model)
            if self.options.on == "text":
                self._text = context.pack(context.encode_text(context.pretraining.train))
        return model

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Begin to draw text, in an order of the task's own; the data stay as they are."""
        from forgetting.tasks.memory import Memory

        if self.options.strength > 0 and self.options.on == "text":
            self._memory = Memory.for_task(self._text, self.context, batch_size=None, position=len(seen))
        return dataset

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add the divergence."""
        from forgetting.distillation import (
            kl_divergence,
            predict,
            predicted_logits,
            task_heads,
            teach,
            watched_divergence,
        )

        if self.options.strength == 0:
            return loss
        direction = self.options.direction
        if self.options.on == "task" and task_heads(self._teacher) is not None:
            return loss + self.options.strength * watched_divergence(
                self._teacher, outputs, batch, [0], direction=direction
            )
        if self.options.on == "text":
            batch = self._memory.next_batch(loss.device)
            with self._memory.own_randomness(loss.device):
                learned = predict(model, batch)
        else:
            learned = predicted_logits(outputs.logits, batch["labels"])
        taught = teach(self._teacher, batch)
        return loss + self.options.strength * kl_divergence(taught, learned, direction=direction)

    def task_state(self) -> dict[str, torch.Tensor]:
        """Where the draws stand."""
        return self._memory.state_dict() if self.options.strength > 0 and self.options.on == "text" else {}

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        if state:
            self._memory.load_state_dict(state)

    def stored_floats(self) -> int:
        """The pretrained model, and the text's tokens."""
        if self.options.strength == 0:
            return 0
        from forgetting.tasks.memory import stored_tokens

        text = stored_tokens(self._text) if self.options.on == "text" else 0
        return sum(p.numel() for p in self._teacher.parameters()) + text
