"""Single task: each task is fine-tuned from the pretrained weights alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class SingleTask(Mitigation[Options]):
    """Before each task the model goes back to its pretrained state: R[j, j] is what a fine-tune on j alone learns.

    The summary of a study that has it measures every run's intransigence against it, at the same seed.
    """

    summary: ClassVar[str] = "reference: fine-tune every task from the pretrained weights"
    paper: ClassVar[str] = "Chaudhry et al. 2018, arXiv 1801.10112 (intransigence)"
    equation: ClassVar[str] = "θ_t trained from θ_0 for every t"
    cost: ClassVar[str] = "one copy of the model"
    reference: ClassVar[bool] = True
    replaces_weights: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Adapters must be part of what it goes back to."""
        from forgetting.weights import check_adapters_first

        check_adapters_first("single_task", chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Keep the pretrained state."""
        super().setup(model, context)
        self._base = copy.deepcopy(model.state_dict())
        self._stored = sum(p.numel() for p in model.parameters())
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Go back to it."""
        model.load_state_dict(self._base)
        return model

    def stored_floats(self) -> int:
        """The pretrained weights."""
        return self._stored
