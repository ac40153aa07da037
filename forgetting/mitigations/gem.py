"""Gradient episodic memory: no step that, to first order, raises the loss on an earlier task or on the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

    from forgetting.tasks.memory import Memory
    from forgetting.tasks.task import Task


class GEMOptions(Options):
    """Options of gem."""

    examples: int = Field(default=256, ge=0, description="examples remembered of each earlier state; 0 switches it off")
    pretraining: bool = Field(default=True, description="remember the pretrained state too, as task 0, by its text")
    margin: float = Field(default=0.0, ge=0, description="γ, added to the dual's constraints (memory strength)")
    memory_batch: int | None = Field(
        default=None,
        ge=1,
        description="examples of each state's minibatch per step; the training's batch size where not given",
    )


class GEM(Mitigation[GEMOptions]):
    """The gradient g is replaced by the nearest one that has no negative product with any earlier state's gradient.

    One constraint for each earlier task, and one for the pretrained state as task 0: g_k is the gradient of the loss
    on a minibatch of what is remembered of state k, anew in each step (the paper takes the whole memory). The dual
    problem is solved exactly, as non-negative least squares; as in the authors' code it is solved only where a
    constraint is violated, and γ is a lower bound on each v_k. As in the paper, it is the gradient that is projected:
    what Adam makes of it keeps to the constraints only about as far as its preconditioner is a multiple of one.
    """

    summary: ClassVar[str] = "project the gradient so that no earlier task's loss, nor the text's, rises to first order"
    paper: ClassVar[str] = "Lopez-Paz & Ranzato 2017, arXiv 1706.08840"
    equation: ClassVar[str] = (
        "g ← argmin_u ½‖u − g‖² with ⟨u, g_k⟩ ≥ 0 for k < t: g + Gᵀv, v = argmin_{v ≥ γ} ½‖g + Gᵀv‖²"
    )
    cost: ClassVar[str] = (
        "a forward and backward pass and a gradient in memory per earlier state and step; the remembered tokens"
    )
    Options: ClassVar[type[Options]] = GEMOptions
    null: ClassVar[dict[str, Any] | None] = {"examples": 0}
    resumes_within_task: ClassVar[bool] = True

    def __init__(self, options: GEMOptions) -> None:
        super().__init__(options)
        self._memories: list[Memory] = []

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Remember the earlier states, the same examples each time; the task's data stay as they are."""
        from forgetting.tasks.memory import Memory, remembered

        states = remembered(self.context, seen, self.options.examples, pretraining=self.options.pretraining)
        self._memories = [
            Memory.for_task(features, self.context, batch_size=self.options.memory_batch, position=len(seen))
            for features in states
        ]
        return dataset

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Project onto the cone of gradients that agree with every state's."""
        from forgetting.projection import gradient_on, project_onto_cone, with_gradients

        parameters, gradient = with_gradients(model)
        if not self._memories or not parameters:
            return
        device, references = gradient[0].device, []
        for memory in self._memories:
            batch = memory.next_batch(device)
            with memory.own_randomness(device):
                references.append(gradient_on(model, batch, parameters))
        project_onto_cone(gradient, references, self.options.margin)

    def task_state(self) -> dict[str, torch.Tensor]:
        """Where the draws stand."""
        return {f"{i}.{key}": v for i, memory in enumerate(self._memories) for key, v in memory.state_dict().items()}

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        for i, memory in enumerate(self._memories):
            memory.load_state_dict({key: state[f"{i}.{key}"] for key in memory.state_dict()})

    def stored_floats(self) -> int:
        """The remembered tokens."""
        from forgetting.tasks.memory import stored_tokens

        return sum(stored_tokens(memory.features) for memory in self._memories)
