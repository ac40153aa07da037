"""Early stopping on a validation loss: the task's own, or that of held-out pretraining text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainerCallback

    from forgetting.tasks.task import Task


class EarlyStoppingOptions(Options):
    """Options of early_stopping."""

    metric: Literal["task", "pretraining"] = Field(
        default="task",
        description="task: own validation loss; pretraining: loss on pretraining validation text",
    )
    every: int = Field(default=10, ge=1, description="steps between two looks")
    patience: int = Field(
        default=3,
        ge=0,
        description="metric=task: looks without improvement before stopping; 0 switches it off",
    )
    max_increase: float = Field(
        default=0.1,
        ge=0,
        description="metric=pretraining: nats per token the loss may rise above the base model's",
    )
    examples: int = Field(default=128, ge=1, description="validation examples or documents per look")

    @model_validator(mode="after")
    def _used(self) -> EarlyStoppingOptions:
        """No option is accepted and then ignored."""
        other = "max_increase" if self.metric == "task" else "patience"
        if other in self.model_fields_set and (other != "patience" or self.patience > 0):
            raise ValueError(f"{other} has no meaning with metric={self.metric}; leave it out")
        return self


class EarlyStopping(Mitigation[EarlyStoppingOptions]):
    """Look at a loss every few steps; stop and go back to the best weights.

    With ``metric=task`` the best weights are those of the lowest own validation loss. With
    ``metric=pretraining`` that loss rises from the first step, so the weights kept are the last ones whose rise
    is within ``max_increase``. The text looked at is the pretraining validation part, never the held-out
    text on which the change of cross-entropy is reported.
    """

    summary: ClassVar[str] = "stop a task by its own validation loss, or by the rise of the pretraining loss"
    paper: ClassVar[str] = "Prechelt 1998, Early stopping - but when?"
    equation: ClassVar[str] = "N = argmin_n L_val(θ_n), or max n with L_pre(θ_n) ≤ L_pre(θ_0) + max_increase"
    cost: ClassVar[str] = "one validation pass every few steps; one copy of the trained weights"
    Options: ClassVar[type[Options]] = EarlyStoppingOptions
    null: ClassVar[dict[str, Any] | None] = {"patience": 0}
    resumes_within_task: ClassVar[bool] = True

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Measure the base model's loss on pretraining validation text."""
        from forgetting.trainer import mean_loss

        super().setup(model, context)
        if self.options.metric == "pretraining":
            self._base_loss = mean_loss(model, self._pretraining_batches())
        return model

    def callbacks(self, model: PreTrainedModel, task: Task) -> list[TrainerCallback]:
        """One callback that looks, stops and restores."""
        from forgetting.stopping import StopOnLoss
        from forgetting.tasks.memory import drawn

        options = self.options
        if options.metric == "pretraining":
            limit = self._base_loss + options.max_increase
            return [StopOnLoss(self._pretraining_batches(), every=options.every, limit=limit)]
        if options.patience == 0:
            return []
        features = drawn(self.context.encode_validation(task), options.examples, self.context.seed)
        batches = self._batches(features)
        return [StopOnLoss(batches, every=options.every, patience=options.patience)]

    def _pretraining_batches(self) -> list[dict[str, torch.Tensor]]:
        texts = self.context.pretraining.validation[: self.options.examples]
        return self._batches(self.context.encode_text(texts))

    def _batches(self, features: Sequence[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        from forgetting.trainer import padded_batches

        return padded_batches(features, self.context.tokenizer, self.context.training.batch_size)
