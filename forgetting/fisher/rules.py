"""Which rule is whose.

A rule stands for the arithmetic of one class's ``forward``. A subclass with a ``forward`` of its own, or a module
whose ``forward`` was replaced (by an accelerate hook, say), does something else, and has no rule; nor has any
parameter beyond those that the arithmetic knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from forgetting.fisher.layers import Forward, embedding, linear
from forgetting.fisher.norms import (
    is_written_out,
    layer_norm,
    root_mean_square_norm,
    scale_norm,
    written_out_norm,
)
from forgetting.fisher.vision import batch_norm, convolution, patch_embeddings

if TYPE_CHECKING:
    from forgetting.fisher.capture import Capture

Rule = Callable[[nn.Module, "Capture"], Forward]

_BY_FORWARD: dict[Callable[..., object], Rule] = {
    nn.Linear.forward: linear,
    nn.Embedding.forward: embedding,
    nn.LayerNorm.forward: layer_norm,
    nn.RMSNorm.forward: root_mean_square_norm,
    nn.modules.batchnorm._BatchNorm.forward: batch_norm,
    nn.Conv2d.forward: convolution,
}
_IN_TRANSFORMERS: dict[str, Rule] = {"Conv1D": linear, "ViTEmbeddings": patch_embeddings}
_PATCHES = ("cls_token", "mask_token", "position_embeddings")


def rule_for(module: nn.Module) -> tuple[Rule, tuple[str, ...]] | None:
    """The rule of a module's own parameters and their local names, or ``None``."""
    kind = type(module)
    if "forward" in module.__dict__:
        return None
    if (rule := _BY_FORWARD.get(kind.forward)) is not None:
        return rule, ("weight", "bias")
    if not kind.__module__.startswith("transformers."):
        return None
    if kind.__name__ in _IN_TRANSFORMERS:
        return _IN_TRANSFORMERS[kind.__name__], _PATCHES if kind.__name__ == "ViTEmbeddings" else ("weight", "bias")
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if kind.__name__.endswith(("RMSNorm", "T5LayerNorm")) and own == ["weight"]:
        return written_out_norm if is_written_out(module) else scale_norm, ("weight",)
    return None
