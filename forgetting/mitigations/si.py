"""Synaptic Intelligence: parameters are held by how much their movement lowered the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from forgetting.consolidation import LossPath, PenaltyOptions, QuadraticMitigation, check_rules
from forgetting.mitigations.base import Options, RunContext

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from forgetting.fisher import DiagonalPenalty
    from forgetting.tasks.task import Task


class SIOptions(PenaltyOptions):
    """Options of si."""

    strength: float = Field(
        default=1000.0, ge=0, allow_inf_nan=False, description="λ, twice the paper's c; 0 switches it off"
    )
    damping: float = Field(default=1e-3, gt=0, description="ξ, added to the squared distance that a task moved")
    mode: Literal["online", "separate"] = Field(
        default="online", description="online: around the latest weights, as in the paper; separate: each task's own"
    )
    pretrained: Literal["none", "fisher"] = Field(
        default="none",
        description="importance for the pretrained state, whose path is unknown: none, as in the paper; or fisher",
    )
    examples: int = Field(default=128, ge=1, description="pretraining texts, with pretrained=fisher")

    @model_validator(mode="after")
    def _used(self) -> SIOptions:
        """No option is accepted and then ignored."""
        if "examples" in self.model_fields_set and self.pretrained != "fisher":
            raise ValueError(f"examples={self.examples} needs pretrained=fisher")
        return self


class SI(QuadraticMitigation[SIOptions]):
    """Ω is the drop of the loss that a parameter's movement brought, per squared distance.

    g is the gradient before clipping and without this penalty's; what parts before this one added is in it, so a part
    that adds to gradients belongs behind. Δθ is the whole step: the optimizer's, this penalty's, and that of parts
    before it. Δ is the distance between a task's two ends.

    Pretraining's path is not known. As published, nothing is protected during the first task, and what is protected
    after it is that task. ``pretrained=fisher`` stands in for the path: on a quadratic loss ½ h Δ², Ω is ½ h, and at a
    minimum the curvature h of the mean loss per token is the Fisher information per token.
    """

    summary: ClassVar[str] = "quadratic penalty weighted by each parameter's share in lowering the loss"
    paper: ClassVar[str] = "Zenke, Poole & Ganguli 2017, Synaptic intelligence, arXiv 1703.04200"
    equation: ClassVar[str] = "ω ← ω − g·Δθ each step; Ω ← Ω + max(0, ω) / (Δ² + ξ) each task; λ/2 Σ Ω (θ − θ*)²"
    cost: ClassVar[str] = "2 floats per trained parameter; 4 more while a task is trained"
    Options: ClassVar[type[Options]] = SIOptions
    penalty: DiagonalPenalty
    resumes_within_task: ClassVar[bool] = True

    def estimators(self) -> tuple[str, ...]:
        """See QuadraticMitigation."""
        return ("sample",) if self.options.strength > 0 and self.options.pretrained == "fisher" else ()

    def check_model(self, model: PreTrainedModel) -> None:
        """Every trained parameter has a rule, where a Fisher information is asked for."""
        if self.options.strength > 0 and self.options.pretrained == "fisher":
            check_rules(f"mitigation {self.name!r}", model)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Protect the pretrained state, where that is asked for."""
        import torch

        from forgetting.fisher import DiagonalPenalty, diagonal_fisher
        from forgetting.trainer import padded_batches

        super().setup(model, context)
        self.penalty = DiagonalPenalty(online=self.options.mode == "online")
        if self.options.strength > 0 and self.options.pretrained == "fisher":
            features = self._pretraining_features(self.options.examples)
            batches = padded_batches(features, context.tokenizer, context.training.batch_size)
            fisher = diagonal_fisher(model, batches, generator=torch.Generator().manual_seed(context.seed * 1000))
            per_token = fisher.examples / fisher.tokens
            self.penalty.consolidate(fisher, dict(model.named_parameters()), per_token / 2)
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Begin the path."""
        if self.options.strength > 0:
            parameters = dict(model.named_parameters())
            self._path = LossPath(parameters)
            self._start = {name: parameters[name].detach().clone() for name in self._path.lowered}
        return model

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Note the task's own gradient, before the penalty's is added."""
        if self.options.strength > 0:
            self._path.before_step(dict(model.named_parameters()))
        super().after_backward(model, again)

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Add the step to the path; the penalty's own is part of it."""
        super().after_step(model, learning_rate)
        if self.options.strength > 0:
            self._path.after_step(dict(model.named_parameters()))

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Consolidate the path."""
        if self.options.strength > 0:
            parameters = dict(model.named_parameters())
            importance = {
                name: lowered.clamp(min=0)
                / ((parameters[name].detach() - self._start[name]).square() + self.options.damping)
                for name, lowered in self._path.lowered.items()
            }
            self.penalty.consolidate(importance, parameters)
            del self._path, self._start
        return model

    def task_state(self) -> dict[str, Tensor]:
        """The path so far; where it began is known when the task begins again."""
        return dict(self._path.lowered) if self.options.strength > 0 else {}

    def load_task_state(self, state: dict[str, Tensor]) -> None:
        """Restore."""
        for name, value in state.items():
            self._path.lowered[name].copy_(value)
