"""Task arithmetic: each task is learned from the pretrained weights, and what it changed is added up."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field

from forgetting.mitigations.base import Mitigation, Options, RunContext
from forgetting.weights import (
    check_known,
    curve_points,
    exchange,
    kept,
    present,
    refuse_adapters,
    size,
    swapped,
    under_prefix,
    with_prefix,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task
    from forgetting.weights import Weights

Scale = Annotated[float, Field(ge=0)]


class TaskArithmeticOptions(Options):
    """Options of task_arithmetic."""

    scale: Scale = Field(default=0.4, description="λ, of the sum of the task vectors; 0 is the base model")
    curve: Annotated[tuple[Scale, ...], BeforeValidator(curve_points)] = Field(
        default=(0.1, 0.2, 0.3, 0.6, 1.0),
        description="other λ that every row is scored at too (views scale=0.2 ...): 0.1|0.5, or none",
    )


class TaskArithmetic(Mitigation[TaskArithmeticOptions]):
    """The task vectors τ_t = θ_t − θ_0 are kept as their sum: memory does not grow with the number of tasks.

    λ changes nothing in training, so that one run gives the curve over it: ``curve`` names the points beside
    ``scale``, each at the price of another scoring. A checkpoint of the model holds θ_0 + λ Σ τ_t.
    """

    summary: ClassVar[str] = "learn each task from the pretrained weights, and add up what changed"
    paper: ClassVar[str] = "Ilharco et al. 2023, arXiv 2212.04089"
    equation: ClassVar[str] = "θ_scored = θ_0 + λ Σ_t (θ_t − θ_0), θ_t trained from θ_0"
    cost: ClassVar[str] = "2 floats per trained parameter; a scoring per point of the curve"
    Options: ClassVar[type[Options]] = TaskArithmeticOptions
    replaces_weights: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Weights are mixed, not the factors of adapters."""
        refuse_adapters("task_arithmetic", chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Keep the pretrained weights."""
        super().setup(model, context)
        self.base = kept(model)
        self.total: Weights = {}
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Go back to the pretrained weights."""
        check_known("task_arithmetic", model, self.base)
        exchange(model, {name: value.clone() for name, value in self.base.items()})
        return model

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Add the task vector."""
        import torch

        vector = torch._foreach_sub(list(present(model, self.base).values()), list(self.base.values()))
        if self.total:
            torch._foreach_add_(list(self.total.values()), vector)
        else:
            self.total = dict(zip(self.base, vector, strict=True))
        exchange(model, self._at(self.options.scale))
        return model

    def _at(self, scale: float) -> Weights:
        import torch

        if not self.total:  # before the first task
            return {name: value.clone() for name, value in self.base.items()}
        values = torch._foreach_add(list(self.base.values()), [self.total[name] for name in self.base], alpha=scale)
        return dict(zip(self.base, values, strict=True))

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """The other points of the curve."""

        def at(scale: float) -> AbstractContextManager:
            return swapped(model, lambda: self._at(scale))

        return {f"scale={scale:g}": at(scale) for scale in self.options.curve if scale != self.options.scale}

    def stored_floats(self) -> int:
        """The pretrained weights, and the sum."""
        return size(self.base, self.total)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The sum; the pretrained weights are kept again by ``setup``."""
        return with_prefix("total", self.total)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        loaded = under_prefix("total", state)
        self.total = {name: loaded[name] for name in self.base if name in loaded}
