"""RWalk: Fisher information and, along the path, the drop of the loss per KL divergence moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.consolidation import LossPath, PenaltyOptions, QuadraticMitigation, check_rules
from forgetting.mitigations.base import Options, RunContext

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from forgetting.fisher import DiagonalPenalty
    from forgetting.tasks.task import Task


class RWalkOptions(PenaltyOptions):
    """Options of rwalk."""

    strength: float = Field(
        default=1e4, ge=0, allow_inf_nan=False, description="λ, twice the paper's; 0 switches it off"
    )
    alpha: float = Field(default=0.9, gt=0, le=1, description="weight of the newest step in the path's running Fisher")
    window: int = Field(default=10, ge=1, description="steps Δt over which one score is taken")
    damping: float = Field(default=1e-7, gt=0, description="ε, added to the KL divergence of a window")
    examples: int = Field(default=128, ge=1, description="sequences for each Fisher of the penalty")


class Walk:
    """Scores of one task: Σ over windows of the drop of the loss by the KL divergence moved, per parameter.

    Args:
        parameters: Those that require gradients are followed.
        alpha, damping: See RWalkOptions.

    Attributes:
        scores: s, by parameter; none is negative after :meth:`end`.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], alpha: float, damping: float) -> None:
        import torch

        self.alpha, self.damping = alpha, damping
        self.device = next(iter(parameters.values())).device
        self.path = LossPath(parameters)
        self.scores = {name: torch.zeros_like(value) for name, value in self.path.lowered.items()}
        self.fisher: dict[str, Tensor] = {}
        self.steps = 0
        self._begin_window(parameters)

    def _begin_window(self, parameters: dict[str, nn.Parameter]) -> None:
        self._start = {name: parameters[name].detach().clone() for name in self.scores}
        self.path.restart()

    def before_step(self, parameters: dict[str, nn.Parameter]) -> None:
        """Note the gradients, and move the running Fisher: F ← α g² + (1 − α) F, from F = g² at first."""
        import torch

        self.path.before_step(parameters)
        known = {name: g for name, g in self.path.gradients.items() if name in self.fisher}
        new = {name: g for name, g in self.path.gradients.items() if name not in self.fisher}
        if known:
            running, gradients = [self.fisher[name] for name in known], list(known.values())
            torch._foreach_mul_(running, 1 - self.alpha)
            torch._foreach_addcmul_(running, gradients, gradients, self.alpha)
        self.fisher |= {name: gradient.square() for name, gradient in new.items()}

    def after_step(self, parameters: dict[str, nn.Parameter], window: int) -> None:
        """Add the step; every ``window`` of them, a score."""
        self.path.after_step(parameters)
        self.steps += 1
        if self.steps % window == 0:
            self._score(parameters)
            self._begin_window(parameters)

    def _score(self, parameters: dict[str, nn.Parameter]) -> None:
        for name, fisher in self.fisher.items():
            moved = parameters[name].detach() - self._start[name]
            self.scores[name] += self.path.lowered[name] / (0.5 * fisher * moved.square() + self.damping)

    def state_dict(self) -> dict[str, Tensor]:
        """All that later steps need."""
        import torch

        parts = {"lowered": self.path.lowered, "scores": self.scores, "fisher": self.fisher, "start": self._start}
        return {"steps": torch.tensor(self.steps)} | {
            f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.steps = int(state["steps"])
        self.path.lowered, self.scores, self.fisher, self._start = (
            {name.removeprefix(part): value.to(self.device) for name, value in state.items() if name.startswith(part)}
            for part in ("lowered.", "scores.", "fisher.", "start.")
        )

    def end(self, parameters: dict[str, nn.Parameter], window: int) -> None:
        """Score what is left of the last window; what raised the loss on the whole counts for nothing."""
        if self.steps % window:
            self._score(parameters)
        for score in self.scores.values():
            score.clamp_(min=0)


class RWalk(QuadraticMitigation[RWalkOptions]):
    """The importance is the Fisher information plus the path's score, each divided by its largest value.

    What is used where: along the path, the running Fisher of the squared batch gradient, as in the paper. In the
    penalty, the exact one per sequence (labels drawn from the model) at each task's end. The paper's moves with α per
    step there too, and so forgets all but the last steps; here both terms are halved and added to half of the new at
    each task's end, as the paper does with the scores. The pretrained state is task 0: its Fisher is of pretraining
    text, and as its path is not known it has no score. Gradients and movements are those of ``si``.
    """

    summary: ClassVar[str] = "quadratic penalty weighted by Fisher information and the path's loss drop per KL distance"
    paper: ClassVar[str] = "Chaudhry et al. 2018, Riemannian walk, arXiv 1801.10112"
    equation: ClassVar[str] = "s ← s + Σ_Δt −g·Δθ / (½ F Δθ² + ε); λ/2 Σ (F / max F + max(0, s) / max s) (θ − θ*)²"
    cost: ClassVar[str] = "4 floats per trained parameter, 6 more while a task is trained; EWC's Fisher per task"
    Options: ClassVar[type[Options]] = RWalkOptions
    penalty: DiagonalPenalty
    resumes_within_task: ClassVar[bool] = True

    def estimators(self) -> tuple[str, ...]:
        """See QuadraticMitigation."""
        return ("sample",) if self.options.strength > 0 else ()

    def check_model(self, model: PreTrainedModel) -> None:
        """Every trained parameter has a rule."""
        if self.options.strength > 0:
            check_rules(f"mitigation {self.name!r}", model)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Protect the pretrained state."""
        from forgetting.fisher import DiagonalPenalty

        super().setup(model, context)
        self.penalty = DiagonalPenalty()
        self._fisher: dict[str, Tensor] = {}
        self._scores: dict[str, Tensor] = {}
        if self.options.strength > 0:
            self._fisher = self._exact(model, self._pretraining_features(self.options.examples), context.seed * 1000)
            self._protect(model)
        return model

    def _exact(self, model: PreTrainedModel, features: Sequence[dict[str, Any]], seed: int) -> dict[str, Tensor]:
        import torch

        from forgetting.fisher import diagonal_fisher
        from forgetting.trainer import padded_batches

        batches = padded_batches(features, self.context.tokenizer, self.context.training.batch_size)
        return diagonal_fisher(model, batches, generator=torch.Generator().manual_seed(seed)).values

    def _protect(self, model: PreTrainedModel) -> None:
        """Hold the present weights by both terms, around them alone."""
        from forgetting.fisher import DiagonalPenalty

        importance = scaled(self._fisher)
        for name, score in scaled(self._scores).items():
            importance[name] = importance[name] + score
        self.penalty = DiagonalPenalty()
        self.penalty.consolidate(importance, dict(model.named_parameters()))

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Begin the walk."""
        if self.options.strength > 0:
            self._walk = Walk(dict(model.named_parameters()), self.options.alpha, self.options.damping)
        return model

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Note the task's own gradient, before the penalty's is added."""
        if self.options.strength > 0:
            self._walk.before_step(dict(model.named_parameters()))
        super().after_backward(model, again)

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Add the step to the walk; the penalty's own is part of it."""
        super().after_step(model, learning_rate)
        if self.options.strength > 0:
            self._walk.after_step(dict(model.named_parameters()), self.options.window)

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Average both terms with those before, and protect the task."""
        from forgetting.tasks.memory import drawn

        if self.options.strength > 0:
            position, count = self.context.tasks.index(task) + 1, self.options.examples
            seed = self.context.seed * 1000 + position
            self._walk.end(dict(model.named_parameters()), self.options.window)
            features = drawn(self.context.encode_task(task), count, seed)
            self._fisher = averaged(self._fisher, self._exact(model, features, seed))
            self._scores = averaged(self._scores, self._walk.scores)
            del self._walk
            self._protect(model)
        return model

    def task_state(self) -> dict[str, Tensor]:
        """The walk so far."""
        return self._walk.state_dict() if self.options.strength > 0 else {}

    def load_task_state(self, state: dict[str, Tensor]) -> None:
        """Restore."""
        if state:
            self._walk.load_state_dict(state)

    def stored_floats(self) -> int:
        """The penalty's, and both terms."""
        terms = (*self._fisher.values(), *self._scores.values())
        return super().stored_floats() + sum(value.numel() for value in terms)

    def state_dict(self) -> dict[str, Tensor]:
        """The penalty, and both terms."""
        state = super().state_dict() | {f"fisher.{name}": value for name, value in self._fisher.items()}
        return state | {f"score.{name}": value for name, value in self._scores.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore."""
        super().load_state_dict(state)
        self._fisher, self._scores = (
            {key.removeprefix(kind): value for key, value in state.items() if key.startswith(kind)}
            for kind in ("fisher.", "score.")
        )


def scaled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide by the largest value of all parameters, if that is above 0."""
    largest = max((float(value.max()) for value in values.values()), default=0.0)
    return {name: value / largest if largest > 0 else value for name, value in values.items()}


def averaged(before: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half of each, by parameter; the new alone where there is nothing before."""
    return {name: (before[name] + value) / 2 if name in before else value for name, value in new.items()}
