"""Averaged GEM: one constraint for everything earlier, in closed form."""

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


class AGEMOptions(Options):
    """Options of agem."""

    examples: int = Field(default=256, ge=0, description="examples remembered of each earlier state; 0 switches it off")
    pretraining: bool = Field(default=True, description="remember the pretrained state too, as task 0, by its text")
    memory_batch: int | None = Field(
        default=None, ge=1, description="examples of the minibatch per step; the training's batch size where not given"
    )


class AGEM(Mitigation[AGEMOptions]):
    """Where the gradient g has a negative product with the memory's gradient r, its part along r is taken out.

    r is the gradient of the loss on one minibatch, drawn from all that is remembered: as many examples of each earlier
    task as of the pretraining text, which stands for task 0. As in the paper, it is the gradient that is projected:
    what Adam makes of it keeps to the constraint only about as far as its preconditioner is a multiple of one.
    """

    summary: ClassVar[str] = "project the gradient so that the loss on a minibatch of all that is earlier does not rise"
    paper: ClassVar[str] = "Chaudhry et al. 2019, arXiv 1812.00420"
    equation: ClassVar[str] = "g ← g − min(0, ⟨g, r⟩) r / ‖r‖²"
    cost: ClassVar[str] = "a forward and backward pass and a gradient in memory per step; the remembered tokens"
    Options: ClassVar[type[Options]] = AGEMOptions
    null: ClassVar[dict[str, Any] | None] = {"examples": 0}
    resumes_within_task: ClassVar[bool] = True

    def __init__(self, options: AGEMOptions) -> None:
        super().__init__(options)
        self._memory: Memory | None = None

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Remember the earlier states, the same examples each time; the task's data stay as they are."""
        from forgetting.tasks.memory import Memory, remembered

        states = remembered(self.context, seen, self.options.examples, pretraining=self.options.pretraining)
        features = [feature for state in states for feature in state]
        self._memory = None
        if features:
            self._memory = Memory.for_task(
                features, self.context, batch_size=self.options.memory_batch, position=len(seen)
            )
        return dataset

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Project onto the halfspace of gradients that agree with the memory's."""
        from forgetting.projection import gradient_on, project_onto_halfspace, with_gradients

        parameters, gradient = with_gradients(model)
        if self._memory is None or not parameters:
            return
        batch = self._memory.next_batch(gradient[0].device)
        with self._memory.own_randomness(gradient[0].device):
            reference = gradient_on(model, batch, parameters)
        project_onto_halfspace(gradient, reference)

    def task_state(self) -> dict[str, torch.Tensor]:
        """Where the draws stand."""
        return {} if self._memory is None else self._memory.state_dict()

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        if self._memory is not None:
            self._memory.load_state_dict(state)

    def stored_floats(self) -> int:
        """The remembered tokens."""
        from forgetting.tasks.memory import stored_tokens

        return 0 if self._memory is None else stored_tokens(self._memory.features)
