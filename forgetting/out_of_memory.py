"""When a batch does not fit in memory: what says so, and the batch in parts; and what says that a GPU failed."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from forgetting.errors import UsageError
from forgetting.tasks.encode import IGNORED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from forgetting.mitigations import Mitigation


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on a GPU or on the CPU.

    The CPU's allocator raises a plain RuntimeError: ``can't allocate memory: you tried to allocate ... bytes``, or
    ``not enough memory: you tried to allocate ...`` on Windows.
    """
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    known = isinstance(error, Exception) and should_reduce_batch_size(error)
    return known or (isinstance(error, RuntimeError) and "you tried to allocate" in str(error))


def is_device_failure(error: BaseException) -> bool:
    """Whether an exception says that the GPU or its driver failed: nothing more can be computed in this process."""
    import torch

    accelerator = getattr(torch, "AcceleratorError", None)  # not in every torch; a RuntimeError before
    if accelerator is not None and isinstance(error, accelerator):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("CUDA error", "HIP error"))


def free() -> None:
    """Give back to the GPU what a pass that was cut short left; the CPU's memory went with the last reference."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def in_parts(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Split a batch into parts of at most ``size`` rows; a part in which nothing is predicted is left out.

    Args:
        batch: Tensors whose first dimension is the batch's, (B, ...), with ``labels`` (B, T).
        size: Rows per part.

    Returns:
        The parts, in order; the first one where nothing is predicted in any.
    """
    rows = len(batch["labels"])
    parts = [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, rows, size)]
    return [part for part in parts if predicted(part["labels"])] or parts[:1]


def predicted(labels: Tensor) -> int:
    """How many tokens (B, T) are predicted, which the loss of a batch is the mean over."""
    return int((labels[:, 1:] != IGNORED).sum())


def why_whole(model: PreTrainedModel, mitigation: Mitigation, processes: int) -> str | None:
    """Say why a batch must not be split, or ``None`` where its parts give the same gradient.

    Args:
        model: What is trained.
        mitigation: One that cannot accumulate gradients cannot take a batch in parts either.
        processes: That train together; each would split another number of times, and wait for the others.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if processes > 1:
        return "several processes train together"
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        return "batch normalisation sees the whole batch"
    context = getattr(mitigation, "context", None)
    if context is not None:
        try:
            mitigation.check_training(model, context.training.model_copy(update={"gradient_accumulation": 2}))
        except UsageError as error:
            return str(error)
    return None
