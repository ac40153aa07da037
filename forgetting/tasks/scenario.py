"""What is known at test time: van de Ven & Tolias 2019 (arXiv 1904.07734)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from forgetting.errors import UsageError
from forgetting.tasks.lazy import Changed
from forgetting.tasks.task import Example, Sequence, Task

Scenario = Literal["task", "domain", "class"]


def labels_of(task: Task) -> tuple[str, ...]:
    """The choices of a task's training examples, each once, in alphabetical order."""
    return tuple(sorted({choice for example in task.train for choice in example.choices or ()}))


def with_scenario(sequence: Sequence, scenario: Scenario | None) -> Sequence:
    """Return the sequence with the choices that a scenario leaves open.

    ``task``: the task is known, and each item has its own task's choices. ``domain``: it is not, and need not be:
    all tasks have the same labels. ``class``: it is not, and every item may be of any task's classes: the choices are
    the union of all, and so chance is one over their number. ``None`` leaves the sequence as it is.

    Raises:
        UsageError: if a task is not one of choice, or the labels differ with ``domain``.
    """
    if scenario in (None, "task"):
        return sequence
    for task in sequence.tasks:
        if task.metric != "accuracy":
            raise UsageError(
                f"sequence.scenario = {scenario!r}: task {task.name!r} has metric {task.metric!r}; it needs choices"
            )
    if scenario == "domain":
        first = sequence.tasks[0]
        for task in sequence.tasks[1:]:
            if labels_of(task) != labels_of(first):
                raise UsageError(
                    f"sequence.scenario = 'domain': tasks {first.name!r} and {task.name!r} have different labels; "
                    "use task or class"
                )
        return sequence
    union = tuple(dict.fromkeys(label for task in sequence.tasks for label in labels_of(task)))

    def opened(example: Example) -> Example:
        return replace(example, choices=union)

    tasks = (
        replace(
            task,
            train=Changed(task.train, opened),
            validation=tuple(map(opened, task.validation)),
            test=tuple(map(opened, task.test)),
            chance=1 / len(union),
        )
        for task in sequence.tasks
    )
    return replace(sequence, tasks=tuple(tasks))
