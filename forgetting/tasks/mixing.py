"""Mixing replayed data into a task's training data, with an exact expected share per batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

SOURCES = ("task", "pretraining", "earlier", "padding")
EARLIER = SOURCES.index("earlier")
PADDING = SOURCES.index("padding")


class MixedDataset(Dataset):
    """A task's examples and drawn replay examples, as one map-style data set that the trainer shuffles.

    Args:
        task: The task's data set.
        replayed: Features drawn for replay, in the order drawn.
    """

    def __init__(self, task: Dataset, replayed: list[dict[str, Any]]) -> None:
        self.task = task
        self.replayed = replayed
        self._size = len(task)  # type: ignore[arg-type]  # map-style

    def __len__(self) -> int:
        return self._size + len(self.replayed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.task[index] if index < self._size else self.replayed[index - self._size]


def _without_loss(feature: dict[str, Any]) -> dict[str, Any]:
    return {**feature, "labels": [-100] * len(feature["labels"]), "source": PADDING}


def mix(
    task: Dataset, sources: list[list[dict[str, Any]]], *, fraction: float, seed: int, padded: bool
) -> MixedDataset:
    """Draw replay examples so that they are ``fraction`` of the whole.

    With n task examples, n·f / (1 − f) are drawn; the part after the decimal point is drawn as a Bernoulli
    variable, so that the share is exact in expectation. Uniform shuffling then gives every batch that
    expected share.

    Args:
        task: The task's data set, n examples.
        sources: Features to draw from, uniformly over sources, then without replacement until a source is used
            up (then again).
        fraction: f in (0, 1).
        seed: Of the draws.
        padded: Strip the loss from what is drawn (the equal-steps control).
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = len(task) * fraction / (1 - fraction)  # type: ignore[arg-type]  # map-style
    count = int(wanted) + int(torch.rand((), generator=generator).item() < wanted - int(wanted))
    picks = torch.randint(len(sources), (count,), generator=generator).tolist()
    queues: list[list[int]] = [[] for _ in sources]
    drawn = []
    for pick in picks:
        if not queues[pick]:
            queues[pick] = torch.randperm(len(sources[pick]), generator=generator).tolist()
        drawn.append(sources[pick][queues[pick].pop()])
    return MixedDataset(task, [_without_loss(feature) for feature in drawn] if padded else drawn)
