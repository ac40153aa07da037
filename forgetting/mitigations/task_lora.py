"""A LoRA adapter per task, never merged, and an oracle that says which one a test item needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from forgetting.adapters import AdapterOptions
from forgetting.mitigations.lora import LoRA, RankOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class TaskLoRAOptions(RankOptions):
    """Options of task_lora."""

    init: Literal["default", "gaussian", "orthogonal"] = Field(
        default="default", description="default, gaussian: A random, B 0; orthogonal: both random, B A = 0"
    )


class TaskLoRA(LoRA[TaskLoRAOptions]):
    """Nothing is forgotten of a task whose adapter is used; what is lost is that tasks share nothing.

    A task's test split is scored with the task's own adapter, and before the task is learned with none: which it is
    must be known, which no other method is told. Capabilities and drift are measured with the latest adapter, and
    without any in the view ``adapter_off``, which is the base model's row always.

    All adapters are made at the start, so that a checkpoint of the model holds every one of them.
    """

    summary: ClassVar[str] = "train a low-rank adapter per task and score each task with its own (oracle)"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA, arXiv 2106.09685"
    equation: ClassVar[str] = "W_t = W + (alpha / r) B_t A_t, with t told at test time"
    cost: ClassVar[str] = "r (I + O) trained floats per linear layer; as many stored per task"
    Options: ClassVar[type[AdapterOptions]] = TaskLoRAOptions
    task_oracle: ClassVar[bool] = True

    def wrap(self, model: PreTrainedModel, adapter: str = "") -> PreTrainedModel:
        """Return the model with an adapter for every task of the run."""
        import torch

        model = super().wrap(model, adapter or _name(0))
        self._floats = sum(p.numel() for p in model.parameters() if p.requires_grad)
        with torch.random.fork_rng():
            for position in range(1, len(self.context.tasks)):
                torch.manual_seed(self.context.seed * 1000 + position)
                model.add_adapter(_name(position), self.config(model))  # type: ignore[arg-type]  # it is a PeftModel
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Train the task's own adapter from now on."""
        model.set_adapter(_name(self._tasks))
        self._tasks += 1
        return model

    def scoring(self, model: PreTrainedModel, task: Task) -> AbstractContextManager:
        """Use the adapter of a task that was learned; else none."""
        position = [other.name for other in self.context.tasks].index(task.name)
        if position < self._tasks:
            return _using(model, _name(position), _name(self._tasks - 1))
        return model.disable_adapter()  # type: ignore[operator]  # it is a PeftModel

    def stored_floats(self) -> int:
        """The adapters of the tasks begun."""
        return self._floats * self._tasks


def _name(position: int) -> str:
    return f"task_{position + 1}"


@contextmanager
def _using(model: PreTrainedModel, adapter: str, present: str) -> Iterator[None]:
    """Use another adapter than the present one; what requires gradients stays so."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.set_adapter(adapter)
    try:
        yield
    finally:
        model.set_adapter(present)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
