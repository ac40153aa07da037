"""Examples that are rehearsed in minibatches of their own, beside the task's batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from forgetting.tasks.encode import Collator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEYS = ("input_ids", "attention_mask", "position_ids", "labels")


class Memory:
    """Features drawn in seeded minibatches, without replacement until all were drawn, then anew.

    Args:
        features: What is kept (``forgetting.tasks.encode``).
        tokenizer: For its padding token.
        batch_size: Features per minibatch, at most as many as there are.
        seed: Of the draws.
    """

    def __init__(
        self, features: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seed: int
    ) -> None:
        self.features = features
        self.batch_size = min(batch_size, len(features))
        self._collate = Collator.for_tokenizer(tokenizer)
        self._generator = torch.Generator().manual_seed(seed)
        self._queue: list[int] = []

    def __len__(self) -> int:
        return len(self.features)

    def draw(self) -> list[int]:
        """Return the next minibatch's indices into ``features``."""
        while len(self._queue) < self.batch_size:
            self._queue += torch.randperm(len(self.features), generator=self._generator).tolist()
        drawn, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return drawn

    def batch(self, indices: list[int], device: torch.device) -> dict[str, torch.Tensor]:
        """Return features as a batch of ``input_ids``, ``attention_mask`` and ``labels`` on a device."""
        collated = self._collate([self.features[index] for index in indices])
        return {key: value.to(device) for key, value in collated.items() if key in KEYS}
