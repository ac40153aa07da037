"""WiSE-FT: the weights that are scored lie between the pretrained and the fine-tuned ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from forgetting.mitigations.base import Mitigation, Options, RunContext
from forgetting.weights import (
    between,
    check_known,
    curve_points,
    exchange,
    kept,
    present,
    refuse_adapters,
    size,
    stand_last,
    swapped,
    under_prefix,
    with_prefix,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task
    from forgetting.weights import Weights

Alpha = Annotated[float, Field(ge=0, le=1)]


class WiSEFTOptions(Options):
    """Options of wise_ft."""

    alpha: Alpha = Field(default=0.5, description="share of the fine-tuned weights; 1 is naive, 0 the base model")
    curve: Annotated[tuple[Alpha, ...], BeforeValidator(curve_points)] = Field(
        default=(0.1, 0.25, 0.75, 0.9, 1.0),
        description="other alphas that every row is scored at too (views alpha=0.25 ...): 0.1|0.5, or none",
    )


class WiSEFT(Mitigation[WiSEFTOptions]):
    """After each task the model is scored at (1 − α) θ_0 + α θ; the next task goes on from θ, the tuned weights.

    So α changes nothing in training, and one run gives the curve over α: ``curve`` names the points beside
    ``alpha``, each at the price of another scoring. A checkpoint of the model holds the interpolated weights.
    """

    summary: ClassVar[str] = "interpolate between the pretrained and the fine-tuned weights"
    paper: ClassVar[str] = "Wortsman et al. 2022, arXiv 2109.01903"
    equation: ClassVar[str] = "θ_scored = (1 − α) θ_0 + α θ"
    cost: ClassVar[str] = "2 floats per trained parameter; a scoring per point of the curve"
    Options: ClassVar[type[Options]] = WiSEFTOptions
    null: ClassVar[dict[str, Any] | None] = {"alpha": 1, "curve": "none"}
    replaces_weights: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Weights are mixed, not the factors of adapters, and after all else that looks at them."""
        refuse_adapters("wise_ft", chain)
        stand_last("wise_ft", chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Keep the pretrained weights."""
        super().setup(model, context)
        self._acts = self.options.alpha < 1 or bool(self.options.curve)
        self.base = kept(model) if self._acts else {}
        self.tuned: Weights = {}  # between two tasks, where the model has others
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Go on from the tuned weights."""
        if self._acts:
            check_known("wise_ft", model, self.base)
        exchange(model, self.tuned)
        self.tuned = {}
        return model

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Interpolate."""
        if self.options.alpha < 1:
            self.tuned = between(self.base, present(model, self.base), self.options.alpha)
            exchange(model, self.tuned)
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """The other points of the curve."""

        def at(alpha: float) -> AbstractContextManager:
            return swapped(model, lambda: between(self.base, self.tuned or present(model, self.base), alpha))

        return {f"alpha={alpha:g}": at(alpha) for alpha in self.options.curve if alpha != self.options.alpha}

    def stored_floats(self) -> int:
        """The pretrained weights, and the tuned ones."""
        return size(self.base, self.tuned)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tuned weights; the pretrained ones are kept again by ``setup``."""
        return with_prefix("tuned", self.tuned)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self.tuned = under_prefix("tuned", state)
