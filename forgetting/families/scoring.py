"""Scores of classifiers on a task's test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from forgetting.errors import UsageError
from forgetting.evaluation.likelihood import evaluating
from forgetting.evaluation.scores import TaskScore
from forgetting.families.wrapper import HIDDEN
from forgetting.tasks.encode import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.families.labels import Labels
    from forgetting.tasks.encode import Feature
    from forgetting.tasks.task import Task


class HeadScorer:
    """Accuracy: items are 1 where the right class has the greatest logit among the item's choices, else 0.

    Args:
        task: Its test split is scored.
        features: Of its test split.
        labels: Where classes stand.
        tokenizer: For its padding token.
        batch_size: Examples per forward pass.
    """

    def __init__(self, task: Task, features: list[Feature], labels: Labels, tokenizer: Any, batch_size: int) -> None:
        from forgetting.trainer import padded_batches

        self.task = task
        self._batches = padded_batches(features, tokenizer, batch_size)
        self._closed = torch.ones(len(features), labels.outputs, dtype=torch.bool)
        for closed, example in zip(self._closed, task.test, strict=True):
            closed[[labels.target(task.name, choice) for choice in example.choices or ()]] = False

    def score(self, model: PreTrainedModel) -> TaskScore:
        """Score a model; it is left in the mode it was in."""
        items: list[float] = []
        with evaluating(model):
            for batch in self._batches:
                logits, labels = predictions(model, batch)
                closed = self._closed[len(items) : len(items) + len(logits)].to(logits.device)
                items += (logits.masked_fill(closed, 2 * HIDDEN).argmax(1) == labels).double().tolist()
        return TaskScore(sum(items) / len(items), items)

    def after(self, text: str) -> HeadScorer:
        """The same without a text; there is no learning in context by a head."""
        if text:
            raise UsageError(f"task {self.task.name!r}: examples in context are for models that write, not for heads")
        return self


def predictions(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits, (N, W), and labels, (N,), of what a batch predicts."""
    from forgetting.distillation import inputs, predicted_logits

    batch = {key: value.to(model.device) for key, value in batch.items()}
    labels = batch["labels"]
    return predicted_logits(model(**inputs(batch)).logits, labels), labels[:, 1:][labels[:, 1:] != IGNORED]
