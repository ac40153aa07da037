"""Avalanche's exemplar buffers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.storage_policy import ExperienceBalancedBuffer, ReservoirSamplingBuffer

BufferPolicy = Literal["reservoir", "balanced"]


def replay_buffer(sizes: list[int], *, capacity: int, policy: BufferPolicy, seed: int) -> list[tuple[int, int]]:
    """Fill one of Avalanche's exemplar buffers with the experiences seen so far.

    The buffer is a function of its arguments, refilled from the first experience on: it needs no state to
    survive an interruption.

    Args:
        sizes: Number of examples of each experience, in order.
        capacity: Examples kept in all.
        policy: ``reservoir`` (every example seen is kept with equal probability) or ``balanced`` (every
            experience gets an equal share).
        seed: Of the sampling; experience i is sampled with a generator of its own.

    Returns:
        (experience, example) indices of what is kept.
    """
    buffer = (ReservoirSamplingBuffer if policy == "reservoir" else ExperienceBalancedBuffer)(capacity)
    with torch.random.fork_rng(devices=[]):  # Avalanche samples with the global generator
        for experience, size in enumerate(sizes):
            torch.manual_seed(seed * 1000 + experience)
            dataset = AvalancheDataset([[(experience, example) for example in range(size)]])
            buffer.post_adapt(None, SimpleNamespace(dataset=dataset))
    kept = buffer.buffer
    return [(int(kept[i][0]), int(kept[i][1])) for i in range(len(kept))]
