"""Products of float32 matrices on a CPU, by oneDNN where that uses wider instructions than torch's own choice.

torch's ``@`` and ``linear`` call MKL for float32, whose kernels take AVX-512 on Intel's processors only: on others with
AVX-512 they run at half the speed or less of oneDNN's, which come with torch too and are what its compiler calls for a
linear layer. Elsewhere (other types, devices and processors, or ``torch.backends.mkldnn`` off) these are ``@`` and
``linear``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """(…, k) @ (k, n), both of one type; in any memory layout."""
    if not _is_for_onednn(left, right):
        return left @ right
    return _onednn(left, right.T, None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``: (…, I), (O, I) and (O,) to (…, O)."""
    if (bias is not None and bias.dtype != weight.dtype) or not _is_for_onednn(x, weight):
        return functional.linear(x, weight, bias)
    return _onednn(x, weight, bias)


def _is_for_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
        and type(left) is type(right) is Tensor  # no DTensor, no fake one
        and left.numel() > 0
        and right.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
