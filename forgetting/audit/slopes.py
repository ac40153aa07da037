"""The first-order effect of replay: the slope of the loss on general text along the change of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgetting.audit.edits import Change

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class GeneralSlopes:
    """Loss on general text at the two ends of base + α Δ, and its slope dL/dα = ∇L·Δ there.

    Attributes:
        loss_base, loss_tuned: L at both ends, nats per token.
        at_base, at_tuned: ∇L·Δ at both ends, nats per token. A base model that is optimal on the text has ``at_base``
            0; ``at_tuned`` is what the loss falls, per share of Δ that is taken back, and so what an update on replayed
            text would undo first.
        by_layer: The parts of ``at_tuned``, which add up to it.
        tokens: Predicted ones.
    """

    loss_base: float
    loss_tuned: float
    at_base: float
    at_tuned: float
    by_layer: dict[str, float]
    tokens: int

    @property
    def rise(self) -> float:
        """(at_base + at_tuned) / 2: the rise of the loss from first derivatives alone; exact for a quadratic L."""
        return (self.at_base + self.at_tuned) / 2


def general_slopes(change: Change, batches: Sequence[Mapping[str, Tensor]]) -> GeneralSlopes:
    """Measure both ends, by a forward and a backward pass each; holds one gradient at a time.

    The loss is the mean over all predicted tokens, as :func:`forgetting.trainer.mean_loss` has it.

    Args:
        change: Its model is left as it is.
        batches: Inputs and ``labels`` (:func:`forgetting.trainer.padded_batches`), of text like the base model's.

    Raises:
        ValueError: if no label is predicted.
    """
    loss_base, base = _slope(change, batches, at_base=True)
    loss_tuned, tuned = _slope(change, batches, at_base=False)
    by_layer: dict[str, float] = {}
    for name, slope in tuned.items():
        by_layer[change.layers[name]] = by_layer.get(change.layers[name], 0.0) + slope
    return GeneralSlopes(loss_base, loss_tuned, sum(base.values()), sum(tuned.values()), by_layer, _predicted(batches))


def _predicted(batches: Sequence[Mapping[str, Tensor]]) -> int:
    from forgetting.tasks.encode import IGNORED

    return sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)


def _slope(change: Change, batches: Sequence[Mapping[str, Tensor]], *, at_base: bool) -> tuple[float, dict[str, float]]:
    """The loss, and ∇L·Δ by parameter."""
    import torch

    tokens = _predicted(batches)
    if not tokens:
        raise ValueError("batches: no label is predicted; give texts of two tokens or more")
    model, loss = change.model, 0.0
    device = next(model.parameters()).device
    with change.at_base() if at_base else nullcontext(), torch.enable_grad():
        parameters = {name: p for name, p in model.named_parameters() if name in change.base}
        trained = [p.requires_grad for p in parameters.values()]
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for batch in batches:
            share = _predicted([batch]) / tokens
            if share:
                part = model(**{key: value.to(device) for key, value in batch.items()}).loss * share
                part.backward()
                loss += float(part.detach())
        slopes = {
            name: float((p.grad.double() * (change.tuned[name].double() - change.base[name].double())).sum())
            for name, p in parameters.items()
            if p.grad is not None
        }
        for parameter, was in zip(parameters.values(), trained, strict=True):
            parameter.grad = None
            parameter.requires_grad_(was)
    return loss, slopes
