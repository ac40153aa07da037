"""Feature extraction: the pretrained network stays as it is, only a new output head is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FeatureExtraction(Mitigation[Options]):
    """The new head begins as a copy of the pretrained one, so that row 0 is the base model's.

    A head that is tied to the embedding is untied; the embedding stays. Scored with the trained head, and with the
    pretrained one (view ``head_off``): all else is frozen, so that the latter is the base model, whatever was learned.
    """

    summary: ClassVar[str] = "train a new output head alone, on the frozen pretrained network"
    paper: ClassVar[str] = (
        "Sharif Razavian et al. 2014, CNN features off-the-shelf, arXiv 1403.6382; Li & Hoiem 2016, arXiv 1606.09282"
    )
    equation: ClassVar[str] = "W_head ← W_head − η ∇L_task(W_head), all else fixed"
    cost: ClassVar[str] = "one copy of the head"

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Parts that look at the model in ``setup`` must find the new head."""
        from forgetting.adapters import adapters_in

        for adapter in adapters_in(chain):
            raise UsageError(
                f"mitigation 'feature_extraction': trains a head alone, {adapter.name!r} adapters alone; "
                "leave one of them out"
            )
        for part in chain[: list(chain).index(self)]:
            if type(part).setup is not Mitigation.setup:
                name = type(part).__module__.rpartition(".")[2]
                raise UsageError(
                    f"mitigation 'feature_extraction': stands after {name!r}, which would miss its head; "
                    f"write feature_extraction+{name}"
                )

    def check_model(self, model: PreTrainedModel) -> None:
        """There must be a head."""
        if model.get_output_embeddings() is None:
            raise UsageError(f"mitigation 'feature_extraction': {type(model).__name__} has no output head")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Untie the head (or take the tasks' own, where a model has them), and freeze all else."""
        from forgetting.models import untied_head

        super().setup(model, context)
        model.requires_grad_(False)
        head = getattr(model, "heads", None) or untied_head(model)
        self._head = {id(p) for p in head.parameters()}
        self._pretrained = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) in self._head}
        head.requires_grad_(True)
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """The pretrained head."""
        from forgetting.weights import swapped

        return {"head_off": swapped(model, lambda: dict(self._pretrained))}

    def stored_floats(self) -> int:
        """The pretrained head, beside the trained one."""
        return sum(value.numel() for value in self._pretrained.values())
