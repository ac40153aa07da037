"""Gradual unfreezing: the last block is trained first, then more and more of what is before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from forgetting.tasks.task import Task


class GradualUnfreezingOptions(Options):
    """Options of gradual_unfreezing."""

    share: float = Field(
        default=1.0, ge=0, le=1, description="share of a task's steps over which all is unfrozen; 0: all from the start"
    )
    lr_factor: float = Field(
        default=0.1, gt=0, description="multiple of the learning rate for what is unfrozen after the first group"
    )


class GradualUnfreezing(Mitigation[GradualUnfreezingOptions]):
    """In every task, group g of n is trained from step ⌈share · N · g / n⌉ on.

    Group 0 is the last block, the final norm and the head; each block before is a group, the embeddings (and a head
    that is tied to them) are the last. What is still frozen has no gradient: the optimizer neither moves nor decays
    it, and it does not count where gradients are clipped. The paper unfreezes a layer per epoch and lowers the rate
    from layer to layer by 2.6; here the time is a share of the steps and the later groups have one rate
    (``gradual_unfreezing:lr_factor=1+llrd:decay=0.385`` has the paper's).
    """

    summary: ClassVar[str] = "train the last block first, and unfreeze a block more every so many steps"
    paper: ClassVar[str] = "Howard & Ruder 2018, ULMFiT, arXiv 1801.06146"
    equation: ClassVar[str] = "∂L/∂θ_g = 0 at steps s < ⌈share · N · g / n⌉; η_g = lr_factor · η for g > 0"
    Options: ClassVar[type[Options]] = GradualUnfreezingOptions
    null: ClassVar[dict[str, Any] | None] = {"share": 0, "lr_factor": 1}
    resumes_within_task: ClassVar[bool] = True

    def __init__(self, options: GradualUnfreezingOptions) -> None:
        super().__init__(options)
        self._step, self._steps = 0, 0

    def check_model(self, model: PreTrainedModel) -> None:
        """There must be blocks."""
        self._groups(model)

    def _groups(self, model: PreTrainedModel) -> dict[str, int]:
        """Group by parameter name."""
        from forgetting.models import parameter_depths, transformer_blocks

        blocks = len(transformer_blocks(model)[1])
        return {name: max(0, blocks - depth) for name, depth in parameter_depths(model).items()}

    def callbacks(self, model: PreTrainedModel, task: Task) -> list[TrainerCallback]:
        """Count the task's optimizer steps, and find what is frozen first."""
        from transformers import TrainerCallback

        mitigation = self

        class Counter(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                mitigation._step, mitigation._steps = state.global_step, state.max_steps

        if self.options.share == 0:
            return []
        groups = self._groups(model)
        self._count = max(groups.values()) + 1
        self._later = [(groups[name], p) for name, p in model.named_parameters() if groups[name]]
        return [Counter()]

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Drop the gradients of what is still frozen."""
        if self.options.share == 0:
            return
        for group, parameter in self._later:
            if self._step < math.ceil(self.options.share * self._steps * group / self._count):
                parameter.grad = None

    def learning_rates(self, model: PreTrainedModel) -> dict[str, float]:
        """A lower rate for all groups but the first."""
        if self.options.lr_factor == 1:
            return {}
        return {name: self.options.lr_factor for name, group in self._groups(model).items() if group}
