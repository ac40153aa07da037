"""The Triton backend: per-example gradients that live in registers only."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from forgetting.fisher.uses import Product, loop_product_squares


def available(device: torch.device) -> bool:
    """Whether the kernel can run: on CUDA with triton installed, or in triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def triton_product_squares(total: Tensor, uses: Sequence[Product]) -> None:
    """See ``loop_product_squares``, which it falls back on for float64."""
    loop_product_squares(total, uses)
