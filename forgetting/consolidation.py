"""What methods share that hold weights back by a quadratic penalty, ½ λ Σ_i (θ − θ_i)ᵀ Ω_i (θ − θ_i)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import Field

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext
from forgetting.weights import under_prefix, with_prefix

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    Features = Sequence[dict[str, Any]]


class PenaltyOptions(Options):
    """Options of every such method."""

    strength: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="λ; 0 switches it off")
    update: Literal["implicit", "gradient"] = Field(
        default="implicit",
        description="implicit: a step stable at any λ; gradient: added to the loss's, as in the paper",
    )


class Penalty(Protocol):
    """A quadratic: ``forgetting.fisher.DiagonalPenalty`` or another."""

    def add_gradient(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Add λ∇P to the parameters' ``grad``."""

    def step(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Take the implicit step θ ← argmin_u ‖u − θ‖²/2 + strength · P(u)."""

    def stored_floats(self) -> int:
        """What it keeps."""

    def state_dict(self) -> dict[str, Tensor]:
        """All of that."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore."""


PenaltyT = TypeVar("PenaltyT", bound=PenaltyOptions)


def check_rules(what: str, model: PreTrainedModel) -> None:
    """Raise UsageError, which begins with what asks for it, unless every trained parameter has a Fisher rule."""
    from forgetting.fisher.capture import Capture, select_parameters

    try:
        with Capture(model, select_parameters(model, None), lambda name, uses: None):
            pass
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None


class QuadraticMitigation(Mitigation[PenaltyT]):
    """Applies a penalty that the subclass makes in ``setup`` and fills.

    By default after the optimizer's step, as an implicit (proximal) step of length η, the current learning rate, like
    AdamW's decoupled weight decay: it is stable at any strength. Through Adam's preconditioner, the penalty's
    gradient loses its scale.

    Attributes:
        penalty: What holds the weights back.
    """

    penalty: Penalty
    null: ClassVar[dict[str, Any] | None] = {"strength": 0}
    resumes_within_task: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """As registered."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def check(self, chain: Sequence[Mitigation]) -> None:
        """The penalty must stand on the parameters that train, for as long as the run lasts."""
        from forgetting.adapters import check_adapters

        check_adapters(self.name, self, chain, estimators=self.estimators())

    def estimators(self) -> tuple[str, ...]:
        """Estimators of the Fisher information that it takes of what trains."""
        return ()

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """See Mitigation."""
        self._strength = self.options.strength
        return super().setup(model, context)

    def _pretraining_features(self, count: int) -> Features:
        return self.context.encode_text(self.context.pretraining.train[:count])

    @property
    def changes_gradients(self) -> bool:
        """Only where the penalty's is added to the loss's."""
        return self.options.update == "gradient"

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Add the penalty's gradient, where that is asked for."""
        if self.options.update == "gradient":
            self.penalty.add_gradient(dict(model.named_parameters()), self._strength)

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Take the implicit step."""
        if self.options.update == "implicit":
            self.penalty.step(dict(model.named_parameters()), learning_rate * self._strength)

    def stored_floats(self) -> int:
        """The penalty's."""
        return self.penalty.stored_floats()

    def state_dict(self) -> dict[str, Tensor]:
        """The penalty."""
        return with_prefix("penalty", self.penalty.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore."""
        self.penalty.load_state_dict(under_prefix("penalty", state))


class LossPath:
    """How much each parameter's movement lowered the loss: ∫ −g·dθ over optimizer steps, to first order in each.

    The gradients are those found when :meth:`before_step` is called: before clipping, and before what later parts of
    a composition do to them. The movement is all that happened to the weights until :meth:`after_step`.

    Args:
        parameters: Those that require gradients are followed.

    Attributes:
        lowered: −Σ g·Δθ since the last :meth:`restart`, by parameter, in nats of the training loss.
        gradients: Of the present step, of the parameters that have one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        import torch

        self.lowered = {name: torch.zeros_like(p) for name, p in parameters.items() if p.requires_grad}
        self.gradients: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def before_step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Note gradients and weights."""
        import torch

        named = {name: p for name, p in parameters.items() if p.grad is not None and name in self.lowered}
        gradients = [p.grad for p in named.values() if p.grad is not None]
        weights = [p.data for p in named.values()]
        if self.gradients.keys() != named.keys():
            self.gradients = dict(zip(named, map(torch.empty_like, weights), strict=True))
            self._weights = dict(zip(named, map(torch.empty_like, weights), strict=True))
        if named:
            torch._foreach_copy_(list(self.gradients.values()), gradients)
            torch._foreach_copy_(list(self._weights.values()), weights)

    def after_step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the step."""
        import torch

        if self._weights:
            backwards = list(self._weights.values())
            torch._foreach_sub_(backwards, [parameters[name].data for name in self._weights])
            lowered = [self.lowered[name] for name in self.gradients]
            torch._foreach_addcmul_(lowered, list(self.gradients.values()), backwards)

    def restart(self) -> None:
        """Forget what was added."""
        import torch

        torch._foreach_zero_(list(self.lowered.values()))
