"""Avalanche's training loop on a language model's dictionary batches."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor


class TextTemplate(SupervisedTemplate):
    """``SupervisedTemplate`` for a transformers model and what ``as_benchmark`` makes of a sequence of text.

    The model gets the batch and gives the loss, the mean over predicted tokens; ``mb_output`` is its whole output. Of
    Avalanche's own plugins those work that do not look into a batch (replay, synaptic intelligence); the others take
    pairs of tensors (EWC, MAS, RWalk, LwF, GEM, A-GEM), and run in our loop, as the mitigation ``avalanche``.
    Arguments are ``SupervisedTemplate``'s; ``criterion`` is not used.
    """

    mbatch: dict[str, Tensor]

    def _unpack_minibatch(self) -> None:
        self.mbatch = {key: value.to(self.device, non_blocking=True) for key, value in self.mbatch.items()}

    def _obtain_common_dataloader_parameters(self, **kwargs: Any) -> dict[str, Any]:
        parameters = super()._obtain_common_dataloader_parameters(**kwargs)
        return {**parameters, "collate_fn": self.adapted_dataset.collate_fn}

    @property
    def mb_x(self) -> dict[str, Tensor]:
        """What the model reads: the batch without its labels."""
        return {key: value for key, value in self.mbatch.items() if key != "labels"}

    @property
    def mb_y(self) -> Tensor:
        """Labels (B, T), -100 where nothing is predicted."""
        return self.mbatch["labels"]

    @property
    def mb_task_id(self) -> Tensor:
        """Zeros (B,): a language model has one head."""
        return torch.zeros(len(self.mb_y), dtype=torch.int64)

    def forward(self) -> Any:
        """The model's output, with ``loss`` and ``logits``."""
        return self.model(**{key: value for key, value in self.mbatch.items() if key != "weights"})

    def criterion(self) -> Tensor:
        """The model's own loss, nats per predicted token."""
        return self.mb_output.loss
