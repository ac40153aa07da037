"""Merging with the model before the task: each task moves the weights by a share of what it learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options
from forgetting.weights import between, exchange, kept, present, refuse_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class MergePreviousOptions(Options):
    """Options of merge_previous."""

    weight: float = Field(
        default=0.5, ge=0, le=1, description="of the weights after the task; 1 is naive, 0 keeps the model as it was"
    )


class MergePrevious(Mitigation[MergePreviousOptions]):
    """The next task goes on from the merged weights, so that, unlike with wise_ft, each weight is a run of its own.

    After T tasks the pretrained weights still have the share (1 − weight)^T.
    """

    summary: ClassVar[str] = "average the weights after a task with those before it"
    paper: ClassVar[str] = "Lin et al. 2023, arXiv 2309.06256; Xiao et al. 2023, LM-Cocktail, arXiv 2311.13534"
    equation: ClassVar[str] = "θ ← (1 − w) θ_{t−1} + w θ_t after every task"
    cost: ClassVar[str] = "1 float per trained parameter while a task is trained"
    Options: ClassVar[type[Options]] = MergePreviousOptions
    null: ClassVar[dict[str, Any] | None] = {"weight": 1}
    replaces_weights: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Weights are mixed, not the factors of adapters."""
        refuse_adapters("merge_previous", chain)

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Keep the weights."""
        self._previous = kept(model) if self.options.weight < 1 else {}
        return model

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Merge."""
        if self._previous:
            exchange(model, between(self._previous, present(model, self._previous), self.options.weight))
            self._previous = {}
        return model
