"""A text-to-text model as the package sees it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from forgetting.families.wrapper import FamilyModel, output


class EncoderDecoderModel(FamilyModel):
    """An encoder-decoder (T5) that reads ``decoder_input_ids`` and predicts ``labels[:, t + 1]`` at ``[:, t]``."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> ModelOutput:
        """Predict.

        Args:
            input_ids: (B, S), what the encoder reads.
            attention_mask: (B, S).
            decoder_input_ids: (B, 1 + N), the start token and the target.
            labels: (B, 1 + N), -100 and the target.
            num_items_in_batch: See ``wrapper.output``.

        Returns:
            logits (B, 1 + N, V), the loss where there are labels.
        """
        reads = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        return output(self.base(**reads, use_cache=False).logits, labels, num_items_in_batch)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's."""
        return self.base.generate(*args, **kwargs)  # type: ignore[operator]  # torch types it as Module | Tensor
