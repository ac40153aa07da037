"""Models whose parameters are divided among processes (FSDP2, ``torch.distributed.fsdp.fully_shard``).

Such a parameter is a DTensor outside of its layer's passes: it has the whole shape, and each process holds the rows of
its part. What is computed of it is kept as it is kept: nothing here brings the parts of a parameter together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory; of a tensor that is not divided, all of it."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def mesh_of(parameters: Iterable[Tensor]) -> Any:
    """The processes (a one-dimensional DeviceMesh) that these parameters are divided among; ``None`` if they are not.

    Raises:
        ValueError: if some are and others not, or they are divided in another way than by rows among all.
    """
    found = list(parameters)
    divided = [parameter for parameter in found if hasattr(parameter, "to_local")]
    if not divided:
        return None
    mesh: Any = divided[0].device_mesh  # type: ignore[attr-defined]
    by_rows = all(
        p.device_mesh == mesh and len(p.placements) == 1 and p.placements[0].is_shard(0)  # type: ignore[attr-defined]
        for p in divided
    )
    if len(divided) < len(found) or not by_rows:
        raise ValueError("a sharded model: all of its parameters must be divided by rows among the same processes")
    return mesh


def scattered(partial: Tensor, like: Tensor) -> Tensor:
    """Sum over the processes of a tensor of a parameter's whole shape, of which each keeps the parameter's rows.

    Every process must call it, for the same parameters in the same order.
    """
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(like, DTensor)
    summed: Tensor = DTensor.from_local(partial, like.device_mesh, [Partial("sum")], run_check=False)
    return summed.redistribute(placements=like.placements)  # type: ignore[attr-defined]


def share(rows: int, mesh: Any) -> slice:
    """The rows of a batch that are this process's to compute; none where there are fewer rows than processes."""
    part, parts = mesh.get_local_rank(), mesh.size()
    return slice(rows * part // parts, rows * (part + 1) // parts)


def shares(rows: int, mesh: Any) -> set[int]:
    """How many rows :func:`share` gives to the processes."""
    return {rows // mesh.size(), -(-rows // mesh.size())}


def refuse(what: str, parameters: Iterable[Tensor]) -> None:
    """Raise ValueError if ``what`` is asked for of parameters that are divided among processes."""
    if mesh_of(parameters) is not None:
        raise ValueError(f"{what}: is not computed of a sharded model, which diagonal_fisher takes layer by layer")


def zeros(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of a parameter's whole shape, in this process alone, where the layer's own part is summed."""
    return torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
