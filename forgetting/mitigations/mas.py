"""Memory Aware Synapses: parameters are held by how much the model's output depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from forgetting.consolidation import PenaltyOptions, QuadraticMitigation
from forgetting.mitigations.base import Options, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.fisher import DiagonalPenalty
    from forgetting.tasks.task import Task


class MASOptions(PenaltyOptions):
    """Options of mas."""

    strength: float = Field(
        default=0.01, ge=0, allow_inf_nan=False, description="λ, twice the paper's; 0 switches it off"
    )
    mode: Literal["online", "separate"] = Field(
        default="online", description="online: around the latest weights, as in the paper; separate: each task's own"
    )
    examples: int = Field(default=128, ge=1, description="sequences for each importance")
    tasks: bool = Field(default=True, description="protect learned tasks too, not only the pretrained state")


class MAS(QuadraticMitigation[MASOptions]):
    """Ω is the mean over examples of the absolute gradient of the output's squared norm; labels are not used.

    The output of a language model is its logits at all predicted tokens of a sequence, so Ω grows with the sequence's
    length and the vocabulary: λ is not comparable between models. The pretrained state is task 0, on pretraining text.
    Absolute values are of one example at a time: those of a batch's mean would cancel.
    """

    summary: ClassVar[str] = "quadratic penalty weighted by how much the output depends on a parameter; no labels"
    paper: ClassVar[str] = "Aljundi et al. 2018, Memory aware synapses, arXiv 1711.09601"
    equation: ClassVar[str] = "Ω ← Ω + mean_x |∂ ‖f(x)‖² / ∂θ|; λ/2 Σ Ω (θ − θ*)²"
    cost: ClassVar[str] = "2 floats per trained parameter; a forward and backward pass per sequence and task"
    Options: ClassVar[type[Options]] = MASOptions
    penalty: DiagonalPenalty

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Protect the pretrained state."""
        from forgetting.fisher import DiagonalPenalty

        super().setup(model, context)
        self.penalty = DiagonalPenalty(online=self.options.mode == "online")
        if self.options.strength > 0:
            self._protect(model, self._pretraining_features(self.options.examples))
        return model

    def _protect(self, model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> None:
        from forgetting.trainer import padded_batches

        importance = output_sensitivity(model, padded_batches(features, self.context.tokenizer, 1))
        self.penalty.consolidate(importance, dict(model.named_parameters()))

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Protect the task."""
        from forgetting.tasks.memory import drawn

        if self.options.strength > 0 and self.options.tasks:
            seed = self.context.seed * 1000 + self.context.tasks.index(task) + 1
            self._protect(model, drawn(self.context.encode_task(task), self.options.examples, seed))
        return model


def output_sensitivity(model: PreTrainedModel, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return mean_x |∂ ‖f(x)‖² / ∂θ| of every parameter that requires gradients, in eval mode.

    Args:
        model: Left as it was found.
        examples: Batches of one; f(x) are the logits at all of its predicted tokens.
    """
    import torch

    from forgetting.distillation import predict
    from forgetting.fisher.capture import evaluating

    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    totals = [torch.zeros_like(p, requires_grad=False) for p in named.values()]
    device = totals[0].device
    with evaluating(model), torch.enable_grad():
        for example in examples:
            logits = predict(model, {key: value.to(device) for key, value in example.items()})
            norm = logits.square().sum()
            gradients = torch.autograd.grad(norm, list(named.values()), materialize_grads=True, allow_unused=True)
            torch._foreach_add_(totals, torch._foreach_abs(gradients))
    torch._foreach_div_(totals, len(examples))
    return dict(zip(named, totals, strict=True))
