"""The order in which a data set's examples are trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

PART = 1024


class Shuffled(Sampler[int]):
    """All indices in a random order, another one in each epoch.

    The order is that of accelerate's ``SeedableRandomSampler``, which the trainer would use in its place and which
    holds a list of Python's integers: 40 bytes for each example, where this has 8.

    Args:
        size: Indices, from 0.
        seed: Of the first epoch's order; those after it have the next ones.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; the trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for part in order.split(PART):
            yield from part.tolist()
        self.set_epoch(self.epoch + 1)
