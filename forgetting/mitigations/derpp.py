"""DER++: dark experience replay, and the remembered targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Options
from forgetting.mitigations.der import DER, DEROptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class DERPPOptions(DEROptions):
    """Options of derpp."""

    beta: float = Field(default=0.5, ge=0, description="β, weight of the cross-entropy of remembered targets")


class DERPP(DER[DERPPOptions]):
    """Like ``der``; a second memory minibatch is learned again, by the cross-entropy of its targets.

    With α = 0 it is experience replay. The cross-entropy is taken at the positions whose logits are kept.
    """

    summary: ClassVar[str] = "keep remembered examples' logits, and learn their targets again"
    paper: ClassVar[str] = "Buzzega et al. 2020, arXiv 2004.07211"
    equation: ClassVar[str] = "L + α mean (z_θ(x) − z)² − β ln p_θ(y' | x'), (x, z) and (x', y') ~ memory"
    cost: ClassVar[str] = "forward and backward passes on two memory minibatches per step; V floats per kept position"
    Options: ClassVar[type[Options]] = DERPPOptions
    null: ClassVar[dict[str, Any] | None] = {"alpha": 0, "beta": 0}
    resumes_within_task: ClassVar[bool] = True

    def _active(self) -> bool:
        return self.options.alpha > 0 or self.options.beta > 0

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add the squared difference from the stored logits, and the cross-entropy."""
        from torch.nn.functional import cross_entropy

        loss = super().loss(model, batch, outputs, loss)
        if self.options.beta == 0 or not self.memory:
            return loss
        logits, _, targets = self.memory.replay(model, loss.device)
        return loss + self.options.beta * cross_entropy(logits, targets)
