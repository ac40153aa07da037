"""Orthogonal gradient descent: steps that leave earlier examples' outputs alone, to first order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from forgetting.errors import RunFailed
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class OGDOptions(Options):
    """Options of ogd."""

    directions: int = Field(
        default=32, ge=0, description="examples of each state whose direction is kept; 0 switches it off"
    )
    pretraining: bool = Field(default=True, description="protect the pretrained state too, as task 0, by its text")
    project: Literal["step", "gradient"] = Field(
        default="step", description="step: the gradient, and then the optimizer's step; gradient: the gradient alone"
    )


class OGD(Mitigation[OGDOptions]):
    """The gradient is projected so as to be orthogonal to the gradients of earlier examples' outputs.

    An example's output is the log-probability of its predicted tokens, where the paper's OGD-GTL takes the logit of
    the true class; its gradient is taken once, at the end of the example's task, and of pretraining text before the
    first task, as task 0. The paper descends by SGD. A step of Adam along an orthogonal gradient is not orthogonal
    itself: by default the weights' displacement is therefore projected too, after the step.
    """

    summary: ClassVar[str] = "keep every step orthogonal to the gradients of earlier examples' log-probabilities"
    paper: ClassVar[str] = "Farajtabar et al. 2020, arXiv 1910.07104"
    equation: ClassVar[str] = "Δθ ← Δθ − BᵀB Δθ, B an orthonormal basis of {∇ ln p_θ_k(y | x)}, (x, y) of state k < t"
    cost: ClassVar[str] = "one float per trained parameter and direction; 4 products with the basis per step"
    Options: ClassVar[type[Options]] = OGDOptions
    null: ClassVar[dict[str, Any] | None] = {"directions": 0}
    resumes_within_task: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """The directions are of parameters that must last."""
        from forgetting.adapters import check_adapters

        check_adapters("ogd", self, chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Begin with no direction."""
        super().setup(model, context)
        self._basis: torch.Tensor | None = None  # (n, P)
        self._before: torch.Tensor | None = None  # (P,)
        self._tasks = 0
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Before the first task, keep directions of the pretrained state: only now is it known what will train."""
        from forgetting.tasks.memory import some_text

        if self._tasks == 0 and self.options.pretraining:
            self._keep(model, some_text(self.context, self.options.directions))
        return model

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Keep directions of the task."""
        from forgetting.tasks.memory import some_of_task

        self._tasks += 1
        self._keep(model, some_of_task(self.context, task, self._tasks, self.options.directions))
        return model

    def _keep(self, model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> None:
        from forgetting.projection import extended_basis, flattened, gradient_on
        from forgetting.trainer import padded_batches

        if not features:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self._basis is None:
            self._basis = flattened(parameters).new_zeros(0, sum(p.numel() for p in parameters))
        self._check_size(parameters)
        was_training = model.training
        model.eval()
        vectors = (
            flattened(gradient_on(model, {key: value.to(model.device) for key, value in batch.items()}, parameters))
            for batch in padded_batches(features, self.context.tokenizer, 1)
        )
        self._basis = extended_basis(self._basis, vectors, len(features))
        model.train(was_training)

    def _check_size(self, parameters: list[nn.Parameter]) -> None:
        size = sum(p.numel() for p in parameters)
        if self._basis is not None and self._basis.shape[1] != size:
            raise RunFailed(
                f"mitigation 'ogd': {size} parameters train now, {self._basis.shape[1]} did when directions were kept; "
                "the same must train throughout a run"
            )

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Project the gradient; what has none stays without."""
        from forgetting.projection import copy_flat, flattened, without_span

        if self._basis is None:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._check_size(parameters)
        gradient = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
        copy_flat(without_span(flattened(gradient), self._basis, _moves(parameters)), gradient)
        if self.options.project == "step":
            self._before = flattened(parameters)

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Project what the step did to the weights."""
        from forgetting.projection import copy_flat, flattened, without_span

        if self._basis is None or self._before is None:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        step = flattened(parameters).sub_(self._before)
        copy_flat(without_span(step, self._basis, _moves(parameters)).add_(self._before), parameters)
        self._before = None

    def stored_floats(self) -> int:
        """The directions."""
        return 0 if self._basis is None else self._basis.numel()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The directions, and how many tasks were learned."""
        import torch

        state = {"tasks": torch.tensor(self._tasks)}
        return state if self._basis is None else state | {"basis": self._basis}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self._tasks, self._basis = int(state["tasks"]), state.get("basis")


def _moves(parameters: list[nn.Parameter]) -> torch.Tensor | None:
    """Which numbers have a gradient, (P,), where not all have: another part may take some for a while."""
    import torch

    if all(p.grad is not None for p in parameters):
        return None
    return torch.cat([torch.full((p.numel(),), p.grad is not None, device=p.device) for p in parameters])
