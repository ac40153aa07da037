"""An image classifier with heads of its own and of its tasks, as the package sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from forgetting.errors import UsageError
from forgetting.families.wrapper import FamilyModel, Heads, ending, output


class VisionModel(FamilyModel):
    """An image classifier (ResNet, ViT) whose pretrained head is kept, and is head 0, beside the tasks' heads.

    A task's head reads what the pretrained head reads: the features before the model's last linear layer.

    Args:
        base: An ``…ForImageClassification`` that ends in a linear layer.
        sizes: Classes of each head that is added.

    Raises:
        UsageError: if the base model has no such layer.
    """

    def __init__(self, base: PreTrainedModel, sizes: list[int]) -> None:
        super().__init__(base)
        linear = [
            (name, module)
            for name, module in base.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == base.config.num_labels
        ]
        if not linear:
            raise UsageError(
                f"model {type(base).__name__}: has no linear layer with an output for each of its "
                f"{base.config.num_labels} classes, beside which a task's head could stand"
            )
        self._classifier, last = linear[-1]
        self.heads = Heads(last.in_features, sizes, own=True)
        self._image_flops = 0

    def get_output_embeddings(self) -> nn.Module:
        """The pretrained head."""
        return self.base.get_submodule(self._classifier)

    def train(self, mode: bool = True) -> VisionModel:
        """Switch the mode; a batch norm all of whose parameters are frozen keeps its statistics, in eval mode."""
        super().train(mode)
        for module in self.base.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self

    def forward(
        self,
        pixel_values: Tensor,
        head: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> ModelOutput:
        """Predict.

        Args:
            pixel_values: (B, channels, H, W).
            head: (B,): the head of each row.
            labels: (B, 2): -100 and the class.
            num_items_in_batch: See ``wrapper.output``.

        Returns:
            logits (B, 2, W), W the classes of all heads, the pretrained one first; the loss where there are labels.
        """
        assert head is not None
        read: list[Tensor] = []
        hook = self.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            own = self.base(pixel_values).logits  # (B, K)
        finally:
            hook.remove()
        logits, watched = self.heads(read[0][:, None], head, own[:, None])
        return output(ending(logits), labels, num_items_in_batch, watched)

    def floating_point_ops(self, input_dict: dict[str, Any], exclude_embeddings: bool = True) -> int:
        """Three forward passes for every image, as they are counted for one image by torch."""
        from torch.utils.flop_counter import FlopCounterMode

        from forgetting.evaluation.likelihood import evaluating

        pixels = input_dict["pixel_values"]
        if not self._image_flops:
            with evaluating(self.base), FlopCounterMode(display=False) as counter, torch.no_grad():
                self.base(pixels[:1])
            self._image_flops = counter.get_total_flops()
        return 3 * self._image_flops * len(pixels)
