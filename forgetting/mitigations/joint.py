"""Joint training: all tasks' data at once, the upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import TrainingArguments

    from forgetting.tasks.task import Task


class Joint(Mitigation[Options]):
    """Where the first task would be trained, all T are, as one shuffled data set, in T times the steps.

    A budget in epochs stays as it is, and grows with the data. Later tasks train nothing, so that all rows from the
    first on are the same.
    """

    summary: ClassVar[str] = "reference: train on all tasks at once, in as many steps as they have together"
    paper: ClassVar[str] = "Caruana 1997, Multitask learning"
    equation: ClassVar[str] = "θ ← argmin Σ_t L_t(θ), once"
    cost: ClassVar[str] = "none; all tasks' data at once"
    reference: ClassVar[bool] = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._multiple = 1  # for a plan, which trains nothing: the sum over the tasks is the same

    def check(self, chain: Sequence[Mitigation]) -> None:
        """A mix of the first task alone, or a look at its validation loss alone, is not of the union."""
        from forgetting.tasks.union import check_union

        check_union("joint", chain)

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """All tasks' data in their order; the trainer shuffles."""
        from forgetting.tasks.union import union

        self._multiple = 0 if seen else len(self.context.tasks)
        return dataset if seen else union(self.context, [], dataset, self.context.tasks[1:])

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """All steps in the first task, none in the others."""
        if self._multiple == 0:
            args.max_steps = 0
        elif args.max_steps > 0:
            args.max_steps *= self._multiple
        return args
