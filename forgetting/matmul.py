"""Products of float32 matrices on a CPU, by oneDNN where that uses wider instructions than torch's own choice.

torch's ``@`` and ``linear`` call MKL for float32, whose kernels take AVX-512 on Intel's processors only: on others with
AVX-512 they run at half the speed or less of oneDNN's, which come with torch too and are what its compiler calls for a
linear layer. Elsewhere (other types, devices and processors, ``torch.backends.mkldnn`` off, where gradients are
recorded) these are ``@`` and ``linear``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

PLAIN = (Tensor, nn.Parameter)
"""Types of tensor that oneDNN is given: none that is divided among processes, say."""


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """(…, k) @ (k, n), both of one type; in any memory layout."""
    if not (_is_faster() and _suits(left, right)):
        return left @ right
    return _onednn(left, right.T, None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``: (…, I), (O, I) and (O,) to (…, O)."""
    if not (_is_faster() and _suits(x, weight) and (bias is None or bias.dtype == weight.dtype)):
        return functional.linear(x, weight, bias)
    return _onednn(x, weight, bias)


@contextmanager
def fast_layers(model: nn.Module) -> Iterator[None]:
    """Within, the ``nn.Linear`` layers of a model that is not trained meanwhile are computed by :func:`linear`."""
    layers = [
        module
        for module in (model.modules() if _is_faster() else ())
        if type(module) is nn.Linear and "forward" not in module.__dict__  # another's replacement stays
    ]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _forward(layer: nn.Linear, input: Tensor) -> Tensor:
    return linear(input, layer.weight, layer.bias)


def _is_faster() -> bool:
    """Whether this processor, and this torch, are of those."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _suits(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
        and type(left) in PLAIN
        and type(right) in PLAIN
        and left.numel() > 0
        and right.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (left.requires_grad or right.requires_grad))
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
