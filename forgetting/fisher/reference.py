"""The oracle: one example at a time, autograd, float64. Slow, and right for any model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.fisher.capture import evaluating
from forgetting.fisher.engine import Draw, Engine, Totals, logits
from forgetting.fisher.examples import Examples, examples_of, rows_of


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of a model in float64, whose own weights stay as they are."""
    return copy.deepcopy(model).double()


def single_examples(
    inputs: Mapping[str, Any], labels: Tensor, examples: Examples
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yield a batch's examples as batches of one; packed ones are taken out of their rows."""
    if not examples.packed:
        for row in range(examples.rows):
            part = slice(row, row + 1)
            yield rows_of(inputs, examples.rows, part), labels[part]
        return
    assert examples.spans is not None and examples.width is not None
    for span in examples.spans:
        row = span.start // examples.width
        part = slice(span.start - row * examples.width, span.stop - row * examples.width)
        per_token = {
            key: value
            for key, value in inputs.items()
            if isinstance(value, Tensor) and value.shape[:2] == (examples.rows, examples.width)
        }
        yield {key: value[row : row + 1, part] for key, value in per_token.items()}, labels[row : row + 1, part]


class Autograd(Engine):
    """Ordinary gradients, squared: of one example at a time (the oracle), or of a batch's mean (``batched``).

    Args:
        model: In eval mode meanwhile, with no gradients but those of ``parameters``.
        parameters: By name.
        totals: Has the squares added.
        draw, shift: See Engine.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        totals: Totals,
        draw: Draw,
        shift: bool | None,
    ) -> None:
        super().__init__(draw, shift)
        self.model, self.parameters, self.totals = model, parameters, totals

    @contextmanager
    def context(self) -> Iterator[None]:
        """See Engine."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        chosen = {id(parameter) for parameter in self.parameters.values()}
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(id(parameter) in chosen)
            with evaluating(self.model):
                yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def add(self, inputs: dict[str, Any], labels: Tensor, limit: int | None) -> None:
        """See Engine."""
        examples = examples_of(inputs, labels)
        if self.draw.estimator == "batched":
            self._add(inputs, labels, examples, limit)
            return
        before = self.examples
        for single, its_labels in single_examples(inputs, labels, examples):
            left = None if limit is None else limit - (self.examples - before)
            self._add(single, its_labels, examples_of(single, its_labels), left)

    def _add(self, inputs: dict[str, Any], labels: Tensor, examples: Examples, limit: int | None) -> None:
        targets = self.targets(labels, examples, limit)
        if targets is None:
            return
        scale = 1 / targets.examples if self.draw.estimator == "batched" else 1.0
        output = logits(self.model, inputs)
        parameters = list(self.parameters.values())
        for gradient, more in self.draw.backwards(targets, output):
            grads = torch.autograd.grad(output, parameters, gradient * scale, retain_graph=more, allow_unused=True)
            for name, grad in zip(self.parameters, grads, strict=True):
                if grad is not None:
                    self.totals[name].addcmul_(grad.to(self.totals.dtype), grad.to(self.totals.dtype))
