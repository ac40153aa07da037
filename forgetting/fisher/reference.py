"""The oracle: one example at a time, autograd, float64. Slow, and right for any model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from forgetting.fisher.capture import evaluating
from forgetting.fisher.examples import Examples


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of a model in float64, whose own weights stay as they are."""
    return copy.deepcopy(model).double()


def single_examples(
    inputs: Mapping[str, Tensor], labels: Tensor, examples: Examples
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield a batch's examples as batches of one; packed ones are taken out of their rows."""
    if not examples.packed:
        for row in range(examples.rows):
            yield {key: value[row : row + 1] for key, value in inputs.items()}, labels[row : row + 1]
        return
    assert examples.spans is not None and examples.width is not None
    for span in examples.spans:
        row = span.start // examples.width
        part = slice(span.start - row * examples.width, span.stop - row * examples.width)
        per_token = {k: v for k, v in inputs.items() if v.shape == (examples.rows, examples.width)}
        yield {key: value[row : row + 1, part] for key, value in per_token.items()}, labels[row : row + 1, part]


def gradient_squares(
    totals: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], logits: Tensor, gradient: Tensor, retain: bool
) -> None:
    """Add the squares of the gradient that ``gradient`` at the logits gives; of a batch of one, an example's."""
    grads = torch.autograd.grad(logits, list(parameters.values()), gradient, retain_graph=retain, allow_unused=True)
    for name, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            wide = grad.to(totals[name].dtype)
            totals[name].addcmul_(wide, wide)


class Gradients:
    """A model whose ``parameters``, and no others, require gradients while it is entered; in eval mode."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.model, self.parameters = model, parameters

    def __enter__(self) -> Gradients:
        self._flags = [(p, p.requires_grad) for p in self.model.parameters()]
        chosen = {id(p) for p in self.parameters.values()}
        for parameter, _ in self._flags:
            parameter.requires_grad_(id(parameter) in chosen)
        self._mode = evaluating(self.model)
        self._mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._mode.__exit__(None, None, None)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
