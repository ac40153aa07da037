"""The training data of several tasks as one data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.utils.data import ConcatDataset, Dataset

from forgetting.errors import UsageError
from forgetting.tasks.encode import ExampleDataset

if TYPE_CHECKING:
    from forgetting.mitigations import Mitigation, RunContext
    from forgetting.tasks.task import Task


def union(context: RunContext, before: Sequence[Task], dataset: Dataset, after: Sequence[Task]) -> Dataset:
    """Join the data of the tasks ``before``, a task's own data set, and those ``after``, in this order."""

    def own(task: Task) -> Dataset:
        return ExampleDataset(context.pack(context.encode_task(task)))

    return ConcatDataset([*map(own, before), dataset, *map(own, after)]) if [*before, *after] else dataset


def check_union(method: str, chain: Sequence[Mitigation]) -> None:
    """Raise UsageError for parts that would see one task alone where ``method`` trains on several."""
    names = [type(part).__module__.rpartition(".")[2] for part in chain]
    for position, (name, part) in enumerate(zip(names, chain, strict=True)):
        if name == "early_stopping" and part.options.metric == "task":
            raise UsageError(
                f"mitigation {method!r}: 'early_stopping' would look at one task's validation loss alone; "
                "write early_stopping:metric=pretraining, or leave it out"
            )
        if name == "replay" and position < names.index(method):
            raise UsageError(f"mitigation {method!r}: 'replay' would mix into one task alone; write {method}+replay")
