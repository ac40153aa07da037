"""Cumulative training: before each task, on all tasks so far."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel, TrainingArguments

    from forgetting.tasks.task import Task


class CumulativeOptions(Options):
    """Options of cumulative."""

    reset: bool = Field(default=False, description="begin every task from the pretrained weights again")


class Cumulative(Mitigation[CumulativeOptions]):
    """Task t is trained on the data of tasks 1 to t, shuffled, in t times the steps.

    A budget in epochs stays as it is, and grows with the data. With ``reset`` every row is the joint training of the
    tasks so far, and the last one is that of all.
    """

    summary: ClassVar[str] = "reference: train on all tasks so far, not on the new one alone"
    paper: ClassVar[str] = "Chaudhry et al. 2018, arXiv 1801.10112; Caruana 1997, Multitask learning"
    equation: ClassVar[str] = "θ ← argmin Σ_{i ≤ t} L_i(θ) at every task t"
    cost: ClassVar[str] = (
        "t times the steps at task t, (T + 1) / 2 times in all; all tasks' data; reset: the base model"
    )
    Options: ClassVar[type[Options]] = CumulativeOptions
    reference: ClassVar[bool] = True

    def __init__(self, options: CumulativeOptions) -> None:
        super().__init__(options)
        self.replaces_weights = options.reset  # type: ignore[misc]
        self._tasks = 0

    def check(self, chain: Sequence[Mitigation]) -> None:
        """A mix of the new task alone, or a look at its validation loss alone, is not of the union."""
        from forgetting.tasks.union import check_union
        from forgetting.weights import check_adapters_first

        check_union("cumulative", chain)
        if self.options.reset:
            check_adapters_first("cumulative", chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Keep the pretrained state, to go back to."""
        super().setup(model, context)
        self._base = copy.deepcopy(model.state_dict()) if self.options.reset else None
        self._stored = sum(p.numel() for p in model.parameters()) if self.options.reset else 0
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Go back, where that is asked for."""
        if self._base is not None:
            model.load_state_dict(self._base)
        return model

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """The tasks' data so far in their order; the trainer shuffles."""
        from forgetting.tasks.union import union

        self._tasks = len(seen)
        return union(self.context, seen, dataset, [])

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """As many times the steps as there are tasks, this one included."""
        self._tasks += 1
        if args.max_steps > 0:
            args.max_steps *= self._tasks
        return args

    def stored_floats(self) -> int:
        """The pretrained weights, with ``reset``."""
        return self._stored
