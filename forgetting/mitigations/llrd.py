"""Layer-wise learning-rate decay: the nearer to the input, the lower the rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LLRDOptions(Options):
    """Options of llrd."""

    decay: float = Field(
        default=0.8, gt=0, le=1, description="factor of the learning rate from each block to the one before it"
    )


class LLRD(Mitigation[LLRDOptions]):
    """Final norm and head have the full rate; block l of L (from 0) has decay^(L − l) of it, embeddings decay^(L + 1).

    A head that is tied to the embeddings has their rate.
    """

    summary: ClassVar[str] = "lower learning rates for earlier layers"
    paper: ClassVar[str] = (
        "Howard & Ruder 2018, discriminative fine-tuning, arXiv 1801.06146; Clark et al. 2020, ELECTRA, "
        "arXiv 2003.10555"
    )
    equation: ClassVar[str] = "η_l = η · decay^(L − l), embeddings η · decay^(L + 1)"
    Options: ClassVar[type[Options]] = LLRDOptions
    null: ClassVar[dict[str, Any] | None] = {"decay": 1}

    def check_model(self, model: PreTrainedModel) -> None:
        """There must be blocks."""
        self.learning_rates(model)

    def learning_rates(self, model: PreTrainedModel) -> dict[str, float]:
        """A power of ``decay`` for everything below the head."""
        from forgetting.models import parameter_depths, transformer_blocks

        if self.options.decay == 1:
            return {}
        top = len(transformer_blocks(model)[1]) + 1
        return {
            name: self.options.decay ** (top - depth) for name, depth in parameter_depths(model).items() if depth < top
        }
