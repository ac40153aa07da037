"""Diagonal Fisher information: exact, of every parameter, at about the price of one training step."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from forgetting.fisher.capture import Capture, select_parameters
from forgetting.fisher.estimators import ESTIMATORS, Estimator, Targets, shifts_labels
from forgetting.fisher.examples import Examples, examples_of
from forgetting.fisher.reference import Gradients, gradient_squares, in_float64, single_examples
from forgetting.fisher.storage import DiagonalFisher
from forgetting.fisher.uses import ProductSquares, Use, add_squares, loop_product_squares

Backend = Literal["auto", "reference", "torch", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)

Batch = Mapping[str, Tensor] | Sequence[Tensor]
Progress = Callable[[int, "int | None"], None]


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    estimator: Estimator = "sample",
    samples: int = 1,
    parameters: Iterable[str] | None = None,
    max_examples: int | None = None,
    backend: Backend = "auto",
    accumulate_dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    shift_labels: bool | None = None,
    progress: Progress | None = None,
) -> DiagonalFisher:
    """Compute the diagonal of the Fisher information.

    F = E_x E_y[(∂ log p(y | x) / ∂θ)∘²], where log p of a sequence is the sum over its predicted labels: the unit
    is the sequence, its gradient summed over tokens and then squared (van de Ven 2025, arXiv 2502.11756). The
    result does not depend on how the examples are split into batches.

    Args:
        model: Any ``nn.Module`` that gives logits (an output with ``logits``, a tuple that begins with them, or a
            tensor): (B, T, V), or (B, C) for classes. It is run in eval mode and left as it was found.
        batches: Mappings of tensors for the model, each with B rows, and ``labels`` (B, T) or (B,) int64, −100 where
            nothing is predicted; or pairs (inputs, labels). Rows may be padded (``attention_mask``), or packed with
            several examples each, told by ``position_ids`` that begin anew or by ``cu_seq_lens_q``.
        estimator: ``exact``: expectation over the model's own classes. ``sample``: labels drawn from the model, at
            each position given the true tokens before it. ``empirical``: the observed labels. Two approximations of
            the literature, both of the observed labels, are named as what they are: ``batched``: the mean over
            batches of the squared gradient of the batch's mean log-likelihood; ``positionwise``: squares per
            position, then sums.
        samples: Draws per example, for ``sample``.
        parameters: Names or patterns (``*lora_*``); all that require gradients where not given. Others cost nothing:
            of a frozen backbone only input gradients are computed.
        max_examples: Stop after so many examples.
        backend: ``reference``: one example at a time by autograd in float64, for any model. ``torch``: any device.
            ``triton``: CUDA. ``auto``: ``triton`` on CUDA, else ``torch``.
        accumulate_dtype: Of the sums; products are formed in float32 (float64 for float64 weights).
        generator: Of the drawn labels, on any device; torch's own CPU generator where not given.
        shift_labels: The logits at a token predict the next one. Where not given: for models whose class is named
            ``…ForCausalLM`` or ``…LMHeadModel``.
        progress: Called after every batch with how many are done, and how many there are if that is known: examples
            where ``max_examples`` is given, else batches.

    Returns:
        The mean over examples with a predicted label.

    Raises:
        NoRule: (a ValueError) if a parameter's layer has no rule; the parameter is named.
        ValueError: if an argument is out of range, no parameter is chosen, or no example has a predicted label.
    """
    _check(estimator, samples, max_examples, backend)
    if backend == "reference":
        model, accumulate_dtype = in_float64(model), torch.float64
    chosen = select_parameters(model, parameters)
    totals = {name: torch.zeros_like(p, dtype=accumulate_dtype) for name, p in chosen.items()}
    shift = shifts_labels(model) if shift_labels is None else shift_labels
    kind = _Autograd if backend == "reference" or estimator == "batched" else _Captured
    engine = kind(model, chosen, totals, shift, estimator, samples, generator, backend)
    batches = batches if max_examples is None else _until(batches, engine, max_examples)
    total = len(batches) if isinstance(batches, Sized) else None
    with engine, torch.enable_grad(), deterministic():
        for done, batch in enumerate(batches, start=1):
            inputs, labels = _unpack(batch, next(iter(chosen.values())))
            engine.add(inputs, labels, None if max_examples is None else max_examples - engine.examples)
            if progress is not None:
                progress(*((done, total) if max_examples is None else (engine.examples, max_examples)))
    if not engine.examples:
        raise ValueError("diagonal_fisher: no example has a predicted label (all labels are -100)")
    divisor = engine.units if estimator == "batched" else engine.examples
    return DiagonalFisher(
        values={name: value.div_(divisor) for name, value in totals.items()},
        estimator=estimator,
        samples=samples if estimator == "sample" else None,
        examples=engine.examples,
        tokens=engine.tokens,
    )


class _Engine:
    """Adds batches' squared gradients to the totals; entered for as long as it does.

    Attributes:
        examples, tokens: Examples with a predicted label, and predicted labels, so far.
        units: Batches with any.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        totals: dict[str, Tensor],
        shift: bool,
        estimator: Estimator,
        samples: int,
        generator: torch.Generator | None,
        backend: Backend,
    ) -> None:
        self.model, self.parameters, self.totals, self.shift = model, parameters, totals, shift
        self.estimator, self.samples, self.generator = estimator, samples, generator
        self.backend = backend
        self.examples = self.tokens = self.units = 0
        self.context = self._context()

    def _context(self) -> AbstractContextManager:
        raise NotImplementedError

    def add(self, inputs: dict[str, Tensor], labels: Tensor, limit: int | None) -> None:
        """Add a batch, or the first ``limit`` examples of it that have a predicted label."""
        raise NotImplementedError

    def _targets(self, labels: Tensor, examples: Examples, limit: int | None) -> Targets | None:
        """What a batch predicts, counted; ``None`` if that is nothing."""
        targets = Targets(labels, examples, self.shift)
        if limit is not None:
            targets.keep_first(limit)
        self.examples += targets.examples
        self.tokens += targets.tokens
        self.units += targets.examples > 0
        return targets if targets.examples else None

    def _backwards(self, targets: Targets, logits: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Gradients at the logits, and whether another one follows."""
        gradients = targets.output_gradients(logits, self.estimator, self.samples, self.generator)
        upcoming = next(gradients, None)
        while upcoming is not None:
            gradient, upcoming = upcoming, next(gradients, None)
            yield gradient, upcoming is not None

    def __enter__(self) -> None:
        self.context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


class _Captured(_Engine):
    """One backward pass for all examples of a batch."""

    def _context(self) -> AbstractContextManager:
        products = product_squares(self.backend, next(iter(self.parameters.values())).device)
        positionwise = self.estimator == "positionwise"

        def sink(name: str, uses: list[Use]) -> None:
            add_squares(self.totals[name], uses, products, positionwise)

        self.capture = Capture(self.model, self.parameters, sink)
        return self.capture

    def add(self, inputs: dict[str, Tensor], labels: Tensor, limit: int | None) -> None:
        """See _Engine."""
        examples = examples_of(inputs, labels, self.shift)
        targets = self._targets(labels, examples, limit)
        if targets is None:
            return
        examples = replace(examples, positionwise=self.estimator == "positionwise")
        logits = _logits(lambda *args, **kwargs: self.capture.forward(examples, *args, **kwargs), inputs)
        for gradient, more in self._backwards(targets, logits):
            self.capture.backward(logits, gradient, retain_graph=more)


class _Autograd(_Engine):
    """Ordinary gradients: of one example at a time (the reference), or of a whole batch (``batched``)."""

    def _context(self) -> AbstractContextManager:
        return Gradients(self.model, self.parameters)

    def add(self, inputs: dict[str, Tensor], labels: Tensor, limit: int | None) -> None:
        """See _Engine."""
        examples = examples_of(inputs, labels, self.shift)
        if self.estimator == "batched":
            self._add(inputs, labels, examples, limit)
            return
        before = self.examples
        for single, its_labels in single_examples(inputs, labels, examples):
            left = None if limit is None else limit - (self.examples - before)
            self._add(single, its_labels, Examples(1), left)

    def _add(self, inputs: dict[str, Tensor], labels: Tensor, examples: Examples, limit: int | None) -> None:
        targets = self._targets(labels, examples, limit)
        if targets is None:
            return
        scale = 1 / targets.examples if self.estimator == "batched" else 1.0
        logits = _logits(self.model, inputs)
        for gradient, more in self._backwards(targets, logits):
            gradient_squares(self.totals, self.parameters, logits, gradient * scale, more)


def product_squares(backend: Backend, device: torch.device) -> ProductSquares:
    """The function that squares products of matrices.

    Raises:
        ValueError: if ``triton`` is asked for where it cannot run.
    """
    installed = importlib.util.find_spec("triton") is not None
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "torch" or (backend == "auto" and not (installed and device.type == "cuda")):
        return loop_product_squares
    if not installed or not (interpreted or device.type == "cuda"):
        raise ValueError(f"backend 'triton': needs a CUDA device and triton, and the model is on {device}; use 'torch'")
    from forgetting.fisher.kernel import triton_product_squares

    return triton_product_squares


def _check(estimator: str, samples: int, max_examples: int | None, backend: str) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: {estimator!r} is none of {', '.join(ESTIMATORS)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is none of {', '.join(BACKENDS)}")
    if samples < 1 or (samples > 1 and estimator != "sample"):
        raise ValueError(f"samples: {samples} with estimator {estimator!r}; give 1, or more with 'sample'")
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples: {max_examples} is not positive")


def _until(batches: Iterable[Batch], engine: _Engine, limit: int) -> Iterator[Batch]:
    """Batches, none of them drawn in vain once there are enough examples."""
    for batch in batches:
        yield batch
        if engine.examples >= limit:
            return


def _unpack(batch: Batch, parameter: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs by keyword (a lone positional one under the empty name) and labels, on the model's device."""
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ValueError(f"diagonal_fisher: a batch has no 'labels', only {', '.join(map(str, batch))}")
        inputs = {key: value for key, value in batch.items() if key != "labels" and isinstance(value, Tensor)}
        labels = batch["labels"]
    else:
        inputs, labels = {"": batch[0]}, batch[1]
    moved = {key: value.to(parameter.device) for key, value in inputs.items()}
    if parameter.dtype == torch.float64:
        moved = {k: v.double() if v.is_floating_point() else v for k, v in moved.items()}
    return moved, labels


def _logits(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    outputs = model(inputs[""]) if "" in inputs else model(**inputs)
    if isinstance(outputs, Tensor):
        return outputs
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels where torch has a choice (adding rows to a table on a GPU)."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
