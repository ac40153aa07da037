"""O-LoRA: every task's low-rank adapter is held orthogonal to those of the tasks before.

Not OLoRA (Büyükakyüz 2024), which is an initialisation: ``lora:init=olora``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.adapters import AdapterOptions
from forgetting.mitigations.lora import LoRA, RankOptions

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from forgetting.mitigations.base import RunContext
    from forgetting.tasks.task import Task


class OLoRAOptions(RankOptions):
    """Options of o_lora."""

    strength: float = Field(default=0.5, ge=0, description="λ; 0 switches it off, which leaves lora")


class OLoRA(LoRA[OLoRAOptions]):
    """LoRA with a penalty on the overlap of the row space of A with that of every task before.

    A task's adapter is merged into the weights before the next one begins; its A is kept. The absolute values are
    summed over all entries of A_i Aᵀ, (r, r), all tasks before and all layers, as in the authors' code.
    """

    summary: ClassVar[str] = "train each task's low-rank adapter orthogonal to those of the tasks before"
    paper: ClassVar[str] = "Wang et al. 2023, O-LoRA, arXiv 2310.14152"
    equation: ClassVar[str] = "L ← L + λ Σ_layers Σ_{i<t} Σ |A_i A_tᵀ|"
    cost: ClassVar[str] = "r (I + O) trained floats per linear layer; r I stored per linear layer and task"
    Options: ClassVar[type[AdapterOptions]] = OLoRAOptions
    resumes_within_task: ClassVar[bool] = True

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Wrap the model."""
        self._kept: dict[str, torch.Tensor] = {}
        return super().setup(model, context)

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add the overlap."""
        if self.options.strength == 0 or not self._kept:
            return loss
        rows = {name: parameter for name, parameter in _rows(model).items() if parameter.requires_grad}
        overlaps = [(self._kept[name] @ parameter.T).abs().sum() for name, parameter in rows.items()]
        return loss + self.options.strength * sum(overlaps)

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Keep the task's A."""
        import torch

        if self.options.strength > 0:
            for name, parameter in _rows(model).items():
                before = [self._kept[name]] if name in self._kept else []
                self._kept[name] = torch.cat([*before, parameter.detach()])
        return model

    def stored_floats(self) -> int:
        """The A of the tasks before."""
        return super().stored_floats() + sum(value.numel() for value in self._kept.values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """LoRA's, and the A of the tasks before."""
        return super().state_dict() | {f"A.{name}": value for name, value in self._kept.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        super().load_state_dict(state)
        self._kept = {key.removeprefix("A."): value for key, value in state.items() if key.startswith("A.")}


def _rows(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's A by name, (r, I) each, an embedding's too."""
    return {n: p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_embedding_A." in n}
