"""The loop over batches that every Fisher computation shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic as settings

from forgetting.fisher.capture import Capture
from forgetting.fisher.estimators import Estimator, Targets
from forgetting.fisher.examples import Examples, examples_of, rows_of
from forgetting.fisher.shards import share, shares

Batch = Mapping[str, Any] | Sequence[Tensor]
Progress = Callable[[int, "int | None"], None]


class Totals(dict[str, Tensor]):
    """Sums by parameter, each allocated when the first is added to it.

    By then the backward pass has freed the activations behind it: all at once, beside them, would be the peak.

    Args:
        parameters: By name.
        dtype: Of the sums.
    """

    def __init__(self, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.parameters, self.dtype = parameters, dtype

    def __missing__(self, name: str) -> Tensor:
        self[name] = torch.zeros_like(self.parameters[name], dtype=self.dtype, requires_grad=False)
        return self[name]

    def mean(self, count: int) -> dict[str, Tensor]:
        """All sums over ``count``, in the parameters' order; what nothing was added to is zero."""
        return {name: self[name].div_(count) for name in self.parameters}


@dataclass(frozen=True)
class Draw:
    """Whose labels: see ``diagonal_fisher``."""

    estimator: Estimator
    samples: int
    generator: torch.Generator | None

    def backwards(self, targets: Targets, logits: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield gradients at the logits, and whether another one follows."""
        gradients = targets.output_gradients(logits, self.estimator, self.samples, self.generator)
        upcoming = next(gradients, None)
        while upcoming is not None:
            gradient, upcoming = upcoming, next(gradients, None)
            yield gradient, upcoming is not None


class Engine(ABC):
    """Takes batches, and counts.

    Attributes:
        examples, tokens: Examples with a predicted label, and predicted labels, so far.
        units: Batches with any.
    """

    def __init__(self, draw: Draw, shift: bool | None) -> None:
        self.draw, self.shift = draw, shift
        self.examples = self.tokens = self.units = 0

    @abstractmethod
    def context(self) -> AbstractContextManager[Any]:
        """What the model is put into meanwhile."""

    @abstractmethod
    def add(self, inputs: dict[str, Any], labels: Tensor, limit: int | None) -> None:
        """Take a batch, or the first ``limit`` examples of it that have a predicted label."""

    def run(
        self, batches: Iterable[Batch], parameter: Tensor, max_examples: int | None, progress: Progress | None
    ) -> None:
        """Take all batches; of ``max_examples`` only those that are needed are drawn.

        Raises:
            ValueError: if no example has a predicted label.
        """
        total = len(batches) if isinstance(batches, Sized) else None
        with self.context(), torch.enable_grad(), _deterministic():
            for done, batch in enumerate(self._until(batches, max_examples), start=1):
                inputs, labels = _unpack(batch, parameter)
                self.add(inputs, labels, None if max_examples is None else max_examples - self.examples)
                if progress is not None:
                    progress(*((done, total) if max_examples is None else (self.examples, max_examples)))
        if not self.examples:
            raise ValueError("diagonal_fisher: no example has a predicted label (all labels are -100)")

    def _until(self, batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            if limit is not None and self.examples >= limit:
                return

    def targets(self, labels: Tensor, examples: Examples, limit: int | None) -> Targets | None:
        """What a batch predicts, counted; ``None`` if that is nothing."""
        if self.shift is None and labels.dim() == 2:
            raise ValueError(
                "shift_labels: the model's class does not tell whether its logits at a token predict the next one; "
                "give shift_labels=True (a causal language model) or False"
            )
        targets = Targets(labels, examples, bool(self.shift))
        if limit is not None:
            targets.keep_first(limit)
        self.examples += targets.examples
        self.tokens += targets.tokens
        self.units += targets.examples > 0
        return targets if targets.examples else None


class Captured(Engine):
    """One backward pass for all examples of a batch, whose uses of parameters go to the capture's sink.

    Args:
        mesh: The processes that the model is divided among, if it is. Each is given all batches, counts and draws
            alike, and computes its own rows of each.
    """

    def __init__(self, capture: Capture, draw: Draw, shift: bool | None, mesh: Any = None) -> None:
        super().__init__(draw, shift)
        self.capture, self.mesh = capture, mesh

    def context(self) -> AbstractContextManager[Any]:
        """See Engine."""
        return self.capture

    def add(self, inputs: dict[str, Any], labels: Tensor, limit: int | None) -> None:
        """See Engine."""
        examples = examples_of(inputs, labels)
        computed = {examples.rows} if self.mesh is None else shares(examples.rows, self.mesh)
        if examples.width in computed and not examples.packed and examples.rows > 1:
            # Rows and tokens could be confused; in two parts there are fewer rows than tokens.
            half, before = examples.rows // 2, self.examples
            for part in (slice(0, half), slice(half, examples.rows)):
                left = None if limit is None else limit - (self.examples - before)
                self.add(rows_of(inputs, examples.rows, part), labels[part], left)
            return
        targets = self.targets(labels, examples, limit)
        if targets is None:
            return
        if self.mesh is not None:
            # Every process takes part in every pass: one without rows of its own computes a row that predicts nothing.
            own = share(examples.rows, self.mesh)
            targets, own = targets.rows(own), own if own.start < own.stop else slice(0, 1)
            inputs, labels = rows_of(inputs, examples.rows, own), labels[own]
            examples = examples_of(inputs, labels)
        examples = replace(examples, positionwise=self.draw.estimator == "positionwise")
        output = logits(lambda *args, **kwargs: self.capture.forward(examples, *args, **kwargs), inputs)
        for gradient, more in self.draw.backwards(targets, output):
            self.capture.backward(output, gradient, retain_graph=more)


def logits(model: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    """What a model predicts: ``logits`` of its output, the first of a tuple, or the tensor that it is."""
    outputs = model(inputs[""]) if "" in inputs else model(**inputs)
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    assert isinstance(found, Tensor)
    return found


def _unpack(batch: Batch, parameter: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Inputs by keyword (a lone positional one under the empty name) and labels, on the model's device."""
    if isinstance(batch, Mapping):
        if not isinstance(batch.get("labels"), Tensor):
            raise ValueError(f"diagonal_fisher: a batch has no tensor 'labels', only {', '.join(map(str, batch))}")
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        labels = batch["labels"]
    elif len(batch) == 2:
        inputs, labels = {"": batch[0]}, batch[1]
    else:
        raise ValueError(f"diagonal_fisher: a batch has {len(batch)} parts; give a mapping, or a pair (inputs, labels)")
    return {key: _moved(value, parameter) for key, value in inputs.items()}, labels


def _moved(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    wide = parameter.dtype == torch.float64 and value.is_floating_point()
    return value.to(parameter.device, torch.float64 if wide else None)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels where torch has a choice (adding rows to a table on a GPU)."""
    filled = settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        settings.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
