"""Sharpness-aware minimisation: the gradient is taken where the loss is worst within a small distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SAMOptions(Options):
    """Options of sam."""

    rho: float = Field(
        default=0.05, ge=0, allow_inf_nan=False, description="ρ, the distance climbed, over all weights; 0: no climb"
    )


class SAM(Mitigation[SAMOptions]):
    """Flat minima forget less: later tasks' updates raise the loss less there.

    Each step climbs ρ along the gradient, computes the gradient anew there with the same batches and the same dropout,
    and goes back to the very weights it left. The optimizer then takes its step with the second gradient. The recorded
    training loss is that of the first.
    """

    summary: ClassVar[str] = "take the gradient at the worst point nearby, which leads to flat minima"
    paper: ClassVar[str] = "Foret et al. 2021, arXiv 2010.01412; Mehta et al. 2023, arXiv 2112.09153"
    equation: ClassVar[str] = "g = ∇L(θ + ρ ∇L(θ) / ‖∇L(θ)‖)"
    cost: ClassVar[str] = "1 forward and backward pass per step; 1 float per trained parameter during it"
    Options: ClassVar[type[Options]] = SAMOptions
    null: ClassVar[dict[str, Any] | None] = {"rho": 0}
    resumes_within_task: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """What parts before it did to the gradients would be lost."""
        for part in chain[: chain.index(self)]:
            if part.changes_gradients:
                name = type(part).__module__.rsplit(".", 1)[-1]
                raise UsageError(
                    f"mitigation 'sam': stands after {name!r}, whose change of the gradients it would undo; "
                    f"write sam+{name}"
                )

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Climb, look, return."""
        import torch

        parameters = [p for p in model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.options.rho == 0 or not parameters:
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        weights = [p.data for p in parameters]
        kept = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, torch._foreach_mul(gradients, self.options.rho / (norm + 1e-12)))
        try:
            again()
        finally:
            torch._foreach_copy_(weights, kept)
