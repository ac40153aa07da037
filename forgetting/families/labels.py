"""Classes and heads: which head a task has, and where its classes stand among a model's outputs."""

from __future__ import annotations

from collections.abc import Sequence as Items
from itertools import accumulate

from forgetting.errors import UsageError
from forgetting.tasks.scenario import Scenario, labels_of
from forgetting.tasks.task import Sequence


class Labels:
    """The classes of a sequence's heads, side by side.

    Scenario ``task``: a head per task, which the task's identity selects at test time; ``domain`` and ``class``: one
    head for all.

    Args:
        sequence: Every task is one of choice.
        scenario: See above.
        own: Classes of the pretrained model's own head, which then is head 0.

    Attributes:
        sizes: Classes of each of the heads that the tasks add.
        outputs: Classes of all heads, the pretrained model's own included.

    Raises:
        UsageError: if a task is not one of choice.
    """

    def __init__(self, sequence: Sequence, scenario: Scenario | None, own: Items[str] = ()) -> None:
        for task in sequence.tasks:
            if task.metric != "accuracy":
                raise UsageError(
                    f"task {task.name!r}: metric {task.metric!r} needs a model that writes, and this model classifies; "
                    "give choices, or leave the task out with sequence.tasks"
                )
        tasks = {task.name: labels_of(task) for task in sequence.tasks}
        first = [tuple(own)] if own else []
        if scenario == "task":
            heads = [*first, *tasks.values()]
            self._heads = {name: len(first) + i for i, name in enumerate(tasks)}
        else:
            shared = tuple(dict.fromkeys(label for labels in tasks.values() for label in labels))
            heads = [*first, shared]
            self._heads = dict.fromkeys(tasks, len(first))
        starts = [0, *accumulate(len(labels) for labels in heads)]
        self._index = [
            {label: start + i for i, label in enumerate(labels)}
            for start, labels in zip(starts[:-1], heads, strict=True)
        ]
        self.sizes = [len(labels) for labels in heads[len(first) :]]
        self.outputs = starts[-1]

    def head(self, task: str) -> int:
        """The head of a task."""
        return self._heads[task]

    def target(self, task: str, completion: str) -> int:
        """The output that stands for a completion of a task.

        Raises:
            UsageError: if no training example has that choice.
        """
        index = self._index[self._heads[task]]
        if completion not in index:
            raise UsageError(f"task {task!r}: {completion!r} is not among the choices of its training examples")
        return index[completion]
