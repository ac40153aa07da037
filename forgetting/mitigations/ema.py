"""EMA: the weights that are scored are an exponential moving average over the steps of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options, RunContext
from forgetting.weights import (
    check_known,
    exchange,
    kept,
    present,
    size,
    stand_last,
    swapped,
    under_prefix,
    with_prefix,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task
    from forgetting.weights import Weights


class EMAOptions(Options):
    """Options of ema."""

    decay: float = Field(default=0.99, ge=0, lt=1, description="of the average, per optimizer step; 0 is naive")


class EMA(Mitigation[EMAOptions]):
    """The average begins at the pretrained weights, and goes on from task to task, about 1 / (1 − decay) steps long.

    Training goes on from the weights that are averaged over, which are scored as the view ``average_off``.
    """

    summary: ClassVar[str] = "score an exponential moving average of the weights, from the pretrained ones on"
    paper: ClassVar[str] = "Polyak & Juditsky 1992; Stojanovski et al. 2022, arXiv 2211.03186"
    equation: ClassVar[str] = "θ̄ ← decay · θ̄ + (1 − decay) θ after every step, θ̄_0 = θ_0"
    cost: ClassVar[str] = "1 float per trained parameter"
    Options: ClassVar[type[Options]] = EMAOptions
    null: ClassVar[dict[str, Any] | None] = {"decay": 0}
    replaces_weights: ClassVar[bool] = True
    resumes_within_task: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """What is averaged must last as long as the run, and is swapped in after all else."""
        from forgetting.adapters import check_adapters

        check_adapters("ema", self, chain)
        stand_last("ema", chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Begin at the pretrained weights."""
        super().setup(model, context)
        self.average = kept(model) if self.options.decay > 0 else {}
        self.tuned: Weights = {}  # between two tasks, where the model has the average
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Go on from the weights that were trained."""
        if self.tuned:
            exchange(model, self.tuned)
            self.average, self.tuned = self.tuned, {}
        if self.options.decay > 0:
            check_known("ema", model, self.average)
        return model

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Move the average towards the weights."""
        import torch

        if self.options.decay > 0:
            weights = list(present(model, self.average).values())
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.options.decay)

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Give the model the average."""
        exchange(model, self.average)
        self.average, self.tuned = {}, self.average
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """The weights that were trained."""
        return {"average_off": swapped(model, lambda: dict(self.tuned))} if self.options.decay > 0 else {}

    def task_state(self) -> dict[str, torch.Tensor]:
        """The average."""
        return dict(self.average)

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self.average = {name: state[name].to(value.device) for name, value in self.average.items()}

    def stored_floats(self) -> int:
        """The average, or the weights that were trained."""
        return size(self.average, self.tuned)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights that were trained: the model has the average."""
        return with_prefix("tuned", self.tuned)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self.average, self.tuned = {}, under_prefix("tuned", state)
