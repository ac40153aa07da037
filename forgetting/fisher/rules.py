"""Which rule is whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from forgetting.fisher.layers import Forward, embedding, layer_norm, linear, root_mean_square_norm, scale_norm
from forgetting.fisher.vision import batch_norm, convolution, patch_embeddings

if TYPE_CHECKING:
    from forgetting.fisher.capture import Capture

Rule = Callable[[nn.Module, "Capture"], Forward]


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a module's own parameters, or ``None``."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return linear
    if isinstance(module, nn.Embedding):
        return embedding
    if isinstance(module, nn.LayerNorm):
        return layer_norm
    if isinstance(module, nn.RMSNorm):
        return root_mean_square_norm
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return batch_norm
    if isinstance(module, nn.Conv2d):
        return convolution
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")) and own == ["weight"]:
        return scale_norm
    if type(module).__name__ == "ViTEmbeddings":
        return patch_embeddings
    return None
