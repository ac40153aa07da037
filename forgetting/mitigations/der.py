"""Dark experience replay: what is remembered keeps the logits that it had when it was stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options, Processes, RunContext

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

    from forgetting.models import ModelFamily
    from forgetting.tasks.task import Task


class DEROptions(Options):
    """Options of der."""

    alpha: float = Field(default=1.0, ge=0, description="α, weight of the squared difference, a mean over V logits")
    buffer_size: int = Field(default=200, ge=1, description="examples kept in all")
    buffer: Literal["reservoir", "balanced"] = Field(
        default="reservoir", description="which examples are kept (Avalanche's storage policies)"
    )
    positions: int = Field(
        default=32, ge=1, description="predicted positions of an example that are kept, drawn where it has more"
    )
    pretraining: bool = Field(default=True, description="keep pretraining text too, with the base model's logits")
    memory_batch: int | None = Field(
        default=None, ge=1, description="examples of a memory minibatch; the training's batch size where not given"
    )


DEROptionsT = TypeVar("DEROptionsT", bound=DEROptions)


class DER(Mitigation[DEROptionsT]):
    """Each step has a memory minibatch of its own, on which the logits shall stay as they were stored.

    The pretrained state is task 0: its text is met first, with the base model's logits. A task's examples are met at
    its end, with the logits of then, as in Avalanche's DER; the paper stores them on the way there, so as to need no
    boundaries between tasks. As in the authors' code the squared difference is a mean over logits, not a sum. Where
    gradients are computed again (``sam``), another minibatch is drawn.
    """

    summary: ClassVar[str] = "keep the logits that remembered examples had when they were stored"
    paper: ClassVar[str] = "Buzzega et al. 2020, arXiv 2004.07211"
    equation: ClassVar[str] = "L + α mean (z_θ(x) − z)², (x, z) ~ memory"
    cost: ClassVar[str] = "a forward and backward pass on a memory minibatch per step; V floats per kept position"
    Options: ClassVar[type[Options]] = DEROptions
    families: ClassVar[tuple[ModelFamily, ...]] = ("decoder",)
    null: ClassVar[dict[str, Any] | None] = {"alpha": 0}
    processes: ClassVar[Processes] = "one"
    resumes_within_task: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """The logits of pretraining text are the base model's."""
        from forgetting.adapters import check_base_first

        if self.options.pretraining:
            check_base_first(type(self).__module__.rpartition(".")[2], self, chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Store pretraining text."""
        from forgetting.tasks.reservoir import LogitReservoir

        super().setup(model, context)
        self.memory = LogitReservoir(
            context,
            capacity=self.options.buffer_size,
            policy=self.options.buffer,
            positions=self.options.positions,
        )
        if self._active() and self.options.pretraining:
            self.memory.add(model, context.encode_text(context.pretraining.train))
        return model

    def _active(self) -> bool:
        """Whether anything is replayed at all."""
        return self.options.alpha > 0

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Begin the task's draws; its data stay as they are."""
        self.memory.begin(batch_size=self.options.memory_batch, position=len(seen))
        return dataset

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add the squared difference from the stored logits."""
        from torch.nn.functional import mse_loss

        if self.options.alpha == 0 or not self.memory:
            return loss
        logits, stored, _ = self.memory.replay(model, loss.device)
        return loss + self.options.alpha * mse_loss(logits, stored)

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Store examples of the task."""
        if self._active():
            self.memory.add(model, self.context.encode_task(task))
        return model

    def task_state(self) -> dict[str, torch.Tensor]:
        """Where the draws stand."""
        return self.memory.task_state()

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self.memory.load_task_state(state)

    def stored_floats(self) -> int:
        """The kept logits, and the tokens."""
        return self.memory.stored_floats()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The memory."""
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self.memory.load_state_dict(state)
