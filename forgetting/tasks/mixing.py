"""Mixing replayed data into a task's training data, with an exact expected share per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from forgetting.tasks.lazy import Lazy

SOURCES = ("task", "pretraining", "earlier", "padding")
EARLIER = SOURCES.index("earlier")
PADDING = SOURCES.index("padding")


class MixedDataset(Dataset):
    """A task's examples and drawn replay examples, as one map-style data set that the trainer shuffles.

    Args:
        task: The task's data set.
        replayed: Features drawn for replay, in the order drawn.
    """

    def __init__(self, task: Dataset, replayed: Sequence[dict[str, Any]]) -> None:
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
    task: Dataset, sources: Sequence[Sequence[dict[str, Any]]], *, fraction: float, seed: int, padded: bool
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
    drawn: list[tuple[int, int]] = []
    for pick in picks:
        if not queues[pick]:
            queues[pick] = torch.randperm(len(sources[pick]), generator=generator).tolist()
        drawn.append((pick, queues[pick].pop()))
    return MixedDataset(task, _Drawn(sources, drawn, padded))


class _Drawn(Lazy[dict[str, Any]]):
    """Features of several sources by source and index, read when they are asked for."""

    def __init__(
        self, sources: Sequence[Sequence[dict[str, Any]]], indices: list[tuple[int, int]], padded: bool
    ) -> None:
        self.sources, self.indices, self.padded = sources, np.array(indices, dtype=np.int64).reshape(-1, 2), padded

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, index: int) -> dict[str, Any]:
        """See :class:`Lazy`."""
        source, position = self.indices[index].tolist()
        feature = self.sources[source][position]
        return _without_loss(feature) if self.padded else feature
