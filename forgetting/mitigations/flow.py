"""FLOW: examples that the pretrained model finds easy weigh more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task

    Features = Sequence[dict[str, Any]]


class FLOWOptions(Options):
    """Options of flow."""

    strength: float = Field(
        default=1.0, ge=0, le=1, description="share of the weighted loss, the rest is the plain one; 0 switches it off"
    )
    temperature: float | None = Field(
        default=None, gt=0, description="τ, in nats per token; the median of the task's losses where not given"
    )


class FLOW(Mitigation[FLOWOptions]):
    """Every example of the task has a weight, once: exp(−ℓ / τ), ℓ the pretrained model's mean loss on it.

    These weights minimise Σ w ℓ + τ Σ w ln w over the simplex: the expected loss, with a price on leaving uniform
    weights. They are scaled so that their mean over the task's predicted tokens is 1, which makes the task's loss
    Σ w·nll / Σ w. It is not normalised per batch: in a small batch that would undo them. Replayed examples keep
    weight 1.
    """

    summary: ClassVar[str] = "weigh the examples by how easy the pretrained model finds them"
    paper: ClassVar[str] = "Sanyal et al. 2025, Upweighting easy samples in fine-tuning, arXiv 2502.02797"
    equation: ClassVar[str] = "min_θ Σ_i w_i ℓ_i(θ), w_i ∝ exp(−ℓ_i(θ_0) / τ), τ = median_i ℓ_i(θ_0)"
    cost: ClassVar[str] = "1 forward pass over each task's training data; 1 float per parameter of the model"
    Options: ClassVar[type[Options]] = FLOWOptions
    null: ClassVar[dict[str, Any] | None] = {"strength": 0}
    resumes_within_task: ClassVar[bool] = True

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Keep the pretrained model."""
        from forgetting.distillation import frozen_copy

        super().setup(model, context)
        if self.options.strength > 0:
            self._base = frozen_copy(model)
        return model

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Give the task's examples their weights."""
        from forgetting.tasks.encode import TASK, ExampleDataset

        if self.options.strength == 0:
            return dataset
        features = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]  # map-style
        own = [i for i, feature in enumerate(features) if feature["source"] == TASK]
        for i, row in zip(own, self._weighted([features[i] for i in own]), strict=True):
            features[i] = row
        return ExampleDataset(features)

    def _weighted(self, rows: Features) -> Features:
        """The same rows, packed or not, with ``weights``."""
        from forgetting.distillation import example_losses

        losses = example_losses(self._base, rows, self.context.tokenizer, self.context.training.batch_size)
        known = [example for row in losses for example in row if example.predicted]
        if not known:
            return rows
        temperature = self.options.temperature or max(median(example.loss for example in known), 1e-12)
        easiest = min(example.loss for example in known)  # subtracted, so that not all weights vanish at a small τ

        def raw(loss: float) -> float:
            return math.exp((easiest - loss) / temperature)

        scale = sum(e.predicted for e in known) / sum(e.predicted * raw(e.loss) for e in known)
        weighted = []
        for row, examples in zip(rows, losses, strict=True):
            weights: list[float] = []
            for example in examples:
                weights += [1 + self.options.strength * (scale * raw(example.loss) - 1)] * example.length
            weighted.append({**row, "weights": weights})
        return weighted

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Weigh: what other parts added to the loss stays as it is."""
        from forgetting.distillation import at_predicted, token_losses

        if "weights" not in batch:  # switched off, or nothing in it is the task's own
            return loss
        losses = token_losses(outputs.logits, batch["labels"])
        excess = at_predicted(batch["weights"], batch["labels"]) - 1
        return loss + (excess * losses).sum() / max(len(losses), 1)

    def stored_floats(self) -> int:
        """The pretrained model."""
        return sum(p.numel() for p in self._base.parameters()) if self.options.strength > 0 else 0
