"""One model on several processes: ``torchrun`` or ``accelerate launch`` start them, each runs the same command.

The processes share one training batch and one result store. Every process plans, evaluates and consolidates alike, on
the same data, so that all decide the same; only the first prints and writes. What is trained on does not depend on
their number: ``batch_size`` counts the sequences of all of them together.

Each process has the whole model (DDP), or, where accelerate is set up for FSDP2, a part of every weight
(``forgetting.sharding``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import BatchSampler, Dataset

NOBODY = -1
"""Source of an example that stands in where a process has none of its own: it carries no loss and is not counted."""


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"environment {name} = {text!r}: is not a number; start with torchrun") from None


def world_size() -> int:
    """Processes that train one model together; 1 where the program was started plainly."""
    return _environment("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process among them, from 0."""
    return _environment("RANK", 0)


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


FSDP2 = {
    "FSDP_VERSION": ("2", "1", "the first version flattens the weights, and no shard of a Fisher information fits"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "true", "between two passes no process holds the whole"),
    "FSDP_AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "TRANSFORMER_BASED_WRAP", "a block is gathered at a time"),
    "FSDP_OFFLOAD_PARAMS": ("false", "false", "shards stay on their device"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "false", "give training.gradient_checkpointing instead"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "false", "each process reads the model and keeps its part"),
}
"""Of accelerate's settings for FSDP, in its names of environment variables: what is needed, its default, and why."""


def sharded() -> bool:
    """Whether the processes divide the model's weights among them (accelerate's FSDP) instead of copying them."""
    return world_size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _check_layout() -> None:
    for name, (needed, default, why) in FSDP2.items():
        if (given := os.environ.get(name, default)).lower() != needed.lower():
            raise UsageError(f"accelerate: {name} = {given!r}: give {needed}: {why}")


@contextmanager
def accelerate_unaware() -> Iterator[None]:
    """Within, accelerate does not see that it is set up for FSDP: the model is sharded when it comes to accelerate.

    On CPUs it would leave the setting out of account, and train with DDP.
    """
    if not sharded():
        yield
        return
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    try:
        yield
    finally:
        os.environ["ACCELERATE_USE_FSDP"] = "true"


def begin() -> None:
    """Join the other processes (gloo on CPUs, NCCL on GPUs) and take a GPU of one's own; nothing where there is one."""
    if world_size() == 1:
        return
    if sharded():
        _check_layout()
    import torch
    from accelerate import PartialState

    if torch.cuda.is_available():
        torch.cuda.set_device(_environment("LOCAL_RANK", 0))
    if not is_main() and not torch.distributed.is_initialized():
        import avalanche  # noqa: F401  # it refuses to be imported in such a process once there is a group
    PartialState(cpu=not torch.cuda.is_available())


def check_shareable(model: nn.Module) -> None:
    """Raise UsageError if what a model learns would depend on how a batch is divided among processes."""
    from torch import nn

    if world_size() > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UsageError(
            f"model {type(model).__name__}: batch norm sees each process's part of a batch alone: results would "
            "depend on their number; use one process"
        )


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import torch

        begin()
        torch.distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Within, the first process goes first, and the others find what it wrote (or, where it failed, do the same)."""
    if world_size() == 1:
        yield
        return
    try:
        if not is_main():
            barrier()
        yield
    finally:
        if is_main():
            barrier()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over the processes; every process must call it."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        summed = tensor.to(PartialState().device, copy=True)  # NCCL sums on GPUs alone
        torch.distributed.all_reduce(summed)
        tensor = summed.to(tensor.device)
    return tensor


def union(found: set[int]) -> set[int]:
    """Return what any process found, of numbers from 0 on; every process must call it."""
    if world_size() == 1:
        return found
    import torch

    highest = total(torch.nn.functional.one_hot(torch.tensor(rank()), world_size()) * (max(found, default=-1) + 1))
    seen = torch.zeros(int(highest.max()), dtype=torch.long)
    seen[sorted(found)] = 1
    return set(total(seen).nonzero().flatten().tolist())


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Within, each process draws its own dropout; afterwards all draw alike again."""
    if world_size() == 1:
        yield
        return
    import torch

    # Of a seed torch's generator for CPUs reads 32 bits.
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {rank()}".encode()).digest()[:4]))
    try:
        yield
    finally:
        torch.manual_seed(seed)


class Share:
    """A batch sampler's batches, of each the part of one process; the parts together are the batch, in its order.

    Parts differ by at most one example. Where a batch has fewer examples than there are processes, some get
    ``-1 - index`` of its first instead: see :class:`StandIns`.

    Args:
        batches: Of all processes together.
        rank: Of this process.
        size: Number of processes.
    """

    def __init__(self, batches: BatchSampler, rank: int, size: int) -> None:
        self.batches, self.rank, self.size = batches, rank, size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            start, end = (len(batch) * part // self.size for part in (self.rank, self.rank + 1))
            yield batch[start:end] or [-1 - batch[0]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)  # accelerate looks for the sampler in it


class StandIns:
    """A data set that gives for the index ``-1 - i`` its example i without loss, of the source ``NOBODY``."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 0:
            return self.dataset[index]
        from forgetting.tasks.encode import IGNORED

        feature = dict(self.dataset[-1 - index])
        return {**feature, "labels": [IGNORED] * len(feature["labels"]), "source": NOBODY, "truncated": 0}
