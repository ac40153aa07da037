"""Tasks of arrays: plain classification of x into y, a task after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from forgetting.errors import UsageError

Scenario = Literal["task", "domain", "class"]
"""What is known when a test example is classified (van de Ven & Tolias 2019, arXiv 1904.07734): which task it is of
(a head per task); not which, and it need not be told (one head, whose labels all tasks share); not which, and it must
be told (all classes of all tasks)."""


class ArraySplit(Dataset):
    """Inputs and their labels; an input is read when it is asked for.

    Args:
        inputs: A tensor whose rows are the inputs, or a data set whose items begin with the input.
        labels: int64, (n,).
    """

    def __init__(self, inputs: Tensor | Dataset, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        item = self.inputs[index]
        return item[0] if isinstance(item, (tuple, list)) else item, int(self.labels[index])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All inputs (n, ...) and labels (n,), in memory."""
        if isinstance(self.inputs, Tensor):
            return self.inputs, self.labels
        return torch.stack([torch.as_tensor(self[i][0]) for i in range(len(self))]), self.labels


@dataclass(frozen=True)
class ArrayTask:
    """One task.

    Attributes:
        name: Unique within its sequence.
        train, test: The splits, with labels 0 to K − 1.
        outputs: What each label stands for in the whole sequence: K numbers.
    """

    name: str
    train: ArraySplit
    test: ArraySplit
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class ArraySequence:
    """Tasks in the order in which they are learned.

    Attributes:
        notes: What was found while loading, to be reported beside a result.

    Raises:
        UsageError: if there is no task.
    """

    name: str
    tasks: tuple[ArrayTask, ...]
    notes: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError(f"sequence {self.name!r}: has no tasks; it needs at least one")

    def __len__(self) -> int:
        return len(self.tasks)

    def classes(self, scenario: Scenario) -> list[tuple[int, ...]]:
        """The classes of each task, by label, as a scenario names them.

        Class-incremental ones are the ``outputs`` where no two tasks share one; else all are numbered through.

        Raises:
            UsageError: domain-incremental, if tasks have different numbers of classes.
        """
        sizes = [len(task.outputs) for task in self.tasks]
        if scenario == "domain" and len(set(sizes)) > 1:
            raise UsageError(f"scenario 'domain': needs as many classes in every task, and they have {sizes}")
        if scenario != "class":
            return [tuple(range(size)) for size in sizes]
        every = [output for task in self.tasks for output in task.outputs]
        if len(set(every)) == len(every):
            return [task.outputs for task in self.tasks]
        return [tuple(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(sizes))]


def image_sequence(
    name: str,
    kind: Literal["split", "permuted"],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    orders: list[Tensor],
) -> ArraySequence:
    """Make tasks of one data set, by classes or by permuted pixels.

    Args:
        name: Of the sequence.
        kind: ``split``: a task per set of classes; ``permuted``: all classes in every task, a permutation of the
            pixels per task.
        train: Images, flat (n, P), and their classes (n,).
        test: The same, held out.
        orders: The classes of each task, or the permutation of each task (P,).
    """
    tasks = []
    for position, order in enumerate(orders):
        if kind == "permuted":
            outputs = tuple(sorted(train[1].unique().tolist()))
            splits = [ArraySplit(x[:, order], y) for x, y in (train, test)]
        else:
            outputs = tuple(order.tolist())
            splits = []
            for x, y in (train, test):
                kept = torch.isin(y, order)
                splits.append(ArraySplit(x[kept], (y[kept, None] == order[None]).int().argmax(1)))
        tasks.append(ArrayTask(f"{kind} {position + 1}", splits[0], splits[1], outputs))
    return ArraySequence(name, tuple(tasks))
