"""A masked language model with a head per task, as the package sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from forgetting.families.wrapper import HIDDEN, FamilyModel, Heads, ending, output


class EncoderModel(FamilyModel):
    """An encoder (BERT, ALBERT) that keeps its masked-language-model head beside the tasks' heads.

    The outputs are the C classes of all heads, then the V tokens: a row with ``head`` ≥ 0 predicts a class from the
    first token's last hidden state, a row with −1 tokens from the positions that are masked in it. Tokens are
    computed only for batches that have such a row.

    Args:
        base: An ``…ForMaskedLM``.
        sizes: Classes of each head.
    """

    def __init__(self, base: PreTrainedModel, sizes: list[int]) -> None:
        super().__init__(base)
        self.classes = sum(sizes)
        self.heads = Heads(base.config.hidden_size, sizes, own=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        head: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> ModelOutput:
        """Predict.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T).
            positions: (B, N): where each label is predicted.
            head: (B,): the head of each row, −1 for the tokens'.
            labels: (B, 1 + N): classes, or C + token.
            num_items_in_batch: See ``wrapper.output``.

        Returns:
            logits (B, 1 + N, C), or (B, 1 + N, C + V) where a row predicts tokens; the loss where there are labels.
        """
        assert positions is not None and head is not None
        reads = {"input_ids": input_ids, "attention_mask": attention_mask}
        if bool((head >= 0).all()):
            hidden = self.base.base_model(**reads).last_hidden_state
            logits, watched = self.heads(hidden[:, :1], head)
            return output(ending(logits), labels, num_items_in_batch, watched)
        outputs = self.base(**reads, output_hidden_states=True)
        tokens = outputs.logits[torch.arange(len(head), device=head.device)[:, None], positions]  # (B, N, V)
        tokens = tokens.masked_fill((head >= 0)[:, None, None], HIDDEN)
        classes = tokens.new_full((*tokens.shape[:2], self.classes), HIDDEN)
        first, watched = self.heads(outputs.hidden_states[-1][:, :1], head)
        if bool((head >= 0).any()):
            classes = torch.cat([first, classes[:, 1:]], dim=1)
        return output(ending(torch.cat([classes, tokens], dim=-1)), labels, num_items_in_batch, watched)
