"""How much a forward pass takes: a number of sequences, or of slots (tokens that are read), which may be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from forgetting.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

AUTO = "auto"
CPU_SLOTS = 1024
"""What a CPU's caches hold counts: of the embedded model 512 to 2,048 slots per pass take the least time, 128 a fifth
and 8,192 two fifths more; of a wider model fewer would fill the matrix products too."""
GPU_SLOTS = 65536
"""The first try on a GPU: products of so many rows keep any of today's busy. What does not fit is halved."""


@dataclass(frozen=True, slots=True)
class Slots:
    """A batch's size in slots; long sequences come in small batches, short ones in large."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"slots {self.n}: is not positive")


BatchSize = int | Slots
"""Sequences, or slots, per forward pass."""


def found_budget(device: torch.device) -> Slots:
    """Return the slots to begin with on a device; :func:`fitting` halves them where they do not fit in memory."""
    return Slots(CPU_SLOTS if device.type == "cpu" else GPU_SLOTS)


def parse_batch_size(given: int | str) -> int | None:
    """Return a number of sequences, or ``None`` of ``auto``.

    Raises:
        UsageError: if it is neither.
    """
    if given == AUTO:
        return None
    if not str(given).isdecimal() or int(given) < 1:
        raise UsageError(f"batch_size {given!r}: is neither a positive number of sequences nor {AUTO!r}")
    return int(given)


def sequences_of(size: BatchSize, length: int) -> int:
    """Return how many sequences of ``length`` slots make a batch: at least one."""
    return size if isinstance(size, int) else max(1, size.n // length)


def fitting(size: BatchSize, least: int, compute: Callable[[BatchSize], T]) -> tuple[T, BatchSize]:
    """Compute, with half the slots for as long as memory runs out; a number of sequences is never changed.

    Args:
        size: To begin with.
        least: Slots of the longest sequence: where a pass has no more, it cannot be made smaller.
        compute: Called with the size; has no effect where it raises.

    Returns:
        What was computed, and with which size.
    """
    from forgetting.out_of_memory import free, is_out_of_memory

    while True:
        try:
            return compute(size), size
        except (RuntimeError, MemoryError) as error:
            if isinstance(size, int) or size.n <= least or not is_out_of_memory(error):
                raise
        free()  # outside of the handler, whose error holds the pass's tensors
        size = Slots(max(size.n // 2, least))
