"""L2-SP: a quadratic penalty around the weights that training began with, the same for every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from forgetting.consolidation import PenaltyOptions, QuadraticMitigation
from forgetting.mitigations.base import Mitigation, Options, Processes, RunContext

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class L2SPOptions(PenaltyOptions):
    """Options of l2sp."""

    strength: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="λ, per squared distance; 0 switches it off"
    )
    reference: Literal["pretrained", "task"] = Field(
        default="pretrained", description="the weights held on to: pretrained, or those at each task's start"
    )


class StartingPoint:
    """½ ‖θ − θ_ref‖², whose implicit step is an interpolation; of a sharded model, of each process's own rows.

    Args:
        parameters: Those that require gradients are held; their present weights are θ_ref.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.weights = {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad}

    def add_gradient(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Add λ(θ − θ_ref) to the parameters' ``grad``."""
        import torch

        from forgetting.fisher.shards import local

        held = {name: p for name, p in parameters.items() if name in self.weights and p.grad is not None}
        if held and strength:
            references = [local(self.weights[name]) for name in held]
            moved = torch._foreach_sub([local(p.data) for p in held.values()], references)
            torch._foreach_add_([local(p.grad) for p in held.values() if p.grad is not None], moved, alpha=strength)

    def step(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Take the implicit step of size ηλ = ``strength``: θ ← θ + (θ_ref − θ) ηλ / (1 + ηλ)."""
        import torch

        from forgetting.fisher.shards import local

        held = {name: local(p.data) for name, p in parameters.items() if name in self.weights and p.requires_grad}
        if held and strength:
            references = [local(self.weights[name]) for name in held]
            torch._foreach_lerp_(list(held.values()), references, 1 - 1 / (1 + strength))

    def stored_floats(self) -> int:
        """One per parameter."""
        return sum(value.numel() for value in self.weights.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a resumed run begins with the same pretrained weights, and every task with its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


class L2SP(QuadraticMitigation[L2SPOptions]):
    """Weight decay towards the starting point, instead of towards zero.

    By default as an implicit step after the optimizer's, which at infinite strength returns to θ_ref. A language
    model has no new parameters, so the paper's second term, plain decay of a new head, is absent. On an adapter
    (``lora:merge=false+l2sp``) it is the adapter that is held to where it began.
    """

    summary: ClassVar[str] = "decay towards the pretrained weights instead of towards zero"
    paper: ClassVar[str] = "Li, Grandvalet & Davoine 2018, Explicit inductive bias, arXiv 1802.01483"
    equation: ClassVar[str] = "θ ← argmin_u ‖u − θ‖² / 2η + λ/2 ‖u − θ_ref‖²"
    cost: ClassVar[str] = "1 float per trained parameter"
    Options: ClassVar[type[Options]] = L2SPOptions
    processes: ClassVar[Processes] = "sharded"
    penalty: StartingPoint

    def check(self, chain: Sequence[Mitigation]) -> None:
        """See QuadraticMitigation; an adapter that is merged has a starting point in every task."""
        from forgetting.adapters import check_adapters

        check_adapters(self.name, self, chain, lasting=self.options.reference == "pretrained")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Keep the pretrained weights."""
        super().setup(model, context)
        held = dict(model.named_parameters()) if self.options.strength > 0 else {}
        self.penalty = StartingPoint(held)
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Keep the task's starting point instead, where that is asked for."""
        if self.options.strength > 0 and self.options.reference == "task":
            self.penalty = StartingPoint(dict(model.named_parameters()))
        return model
