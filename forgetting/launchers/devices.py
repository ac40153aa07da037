"""The GPUs of this machine, divided among worker processes."""

from __future__ import annotations

import os


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes.

    Like CUDA, it reads that list up to the first entry that can be none; without the variable it asks torch.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        import torch

        return [str(index) for index in range(torch.cuda.device_count())]
    names: list[str] = []
    for name in map(str.strip, listed.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return names


def shares(gpus: list[str], workers: int) -> list[str]:
    """Divide GPUs among workers: each gets as many as any other or one more, none is given twice.

    Returns:
        A value of ``CUDA_VISIBLE_DEVICES`` for each worker.

    Raises:
        ValueError: if there are fewer GPUs than workers.
    """
    if not 1 <= workers <= len(gpus):
        raise ValueError(f"workers = {workers}: needs 1 to {len(gpus)}, one GPU at least for each")
    return [",".join(gpus[worker::workers]) for worker in range(workers)]
