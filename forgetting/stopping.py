"""Stopping a task early by a validation loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forgetting.trainer import mean_loss
from forgetting.weights import kept, present, under_prefix, with_prefix

if TYPE_CHECKING:
    from torch import nn


class StopOnLoss(TrainerCallback):
    """Stops a task by a validation loss, and goes back to the weights worth keeping.

    Args:
        batches: Looked at every ``every`` steps.
        patience: Stop after so many looks without a new minimum; the minimum's weights are restored.
        limit: Stop once the loss is above it; the last weights within it are restored.

    One of ``patience`` and ``limit`` is given.
    """

    def __init__(
        self,
        batches: list[dict[str, torch.Tensor]],
        *,
        every: int,
        patience: int | None = None,
        limit: float | None = None,
    ) -> None:
        self.batches, self.every, self.patience, self.limit = batches, every, patience, limit
        self.best = float("inf")
        self.looks_since_best = 0
        self.kept: dict[str, torch.Tensor] = {}

    def _keep(self, model: nn.Module) -> None:
        self.kept = kept(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look before the first step, so that a task may also end where it began."""
        self.best = mean_loss(kwargs["model"], self.batches)
        self._keep(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look, keep, stop."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        loss = mean_loss(kwargs["model"], self.batches)
        if self.limit is not None:
            if loss <= self.limit:
                self._keep(kwargs["model"])
            else:
                control.should_training_stop = True
            return
        self.looks_since_best += 1
        if loss < self.best:
            self.best, self.looks_since_best = loss, 0
            self._keep(kwargs["model"])
        if self.patience is not None and self.looks_since_best >= self.patience:
            control.should_training_stop = True

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was seen and kept, for a checkpoint in the middle of a task: no rotation can lose the best weights."""
        seen = {
            "best": torch.tensor(self.best, dtype=torch.float64),
            "looks_since_best": torch.tensor(self.looks_since_best),
        }
        return seen | with_prefix("kept", self.kept)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.best, self.looks_since_best = float(state["best"]), int(state["looks_since_best"])
        for name, value in under_prefix("kept", state).items():
            self.kept[name].copy_(value)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore what was kept."""
        with torch.no_grad():
            for name, value in present(kwargs["model"], self.kept).items():
                value.copy_(self.kept[name])
