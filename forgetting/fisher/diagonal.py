"""Diagonal Fisher information: exact, of every parameter, at about the price of one training step."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import nn

from forgetting.fisher.capture import Capture, select_parameters
from forgetting.fisher.engine import Batch, Captured, Draw, Engine, Progress, Totals
from forgetting.fisher.estimators import ESTIMATORS, Estimator, shifts_labels
from forgetting.fisher.reference import Autograd, in_float64
from forgetting.fisher.shards import mesh_of, refuse, scattered, zeros
from forgetting.fisher.storage import DiagonalFisher
from forgetting.fisher.uses import ProductSquares, Use, add_squares, loop_product_squares

Backend = Literal["auto", "reference", "torch", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)


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

    A model that is divided among processes (``torch.distributed.fsdp.fully_shard``) stays so: every process calls this
    with the same batches and computes its own rows of each; a layer's squares are summed over the processes as soon as
    they are known, each keeping its part (a reduce-scatter). ``values`` are then DTensors, divided as the parameters
    are. A process never holds more than its own share of the result, and one layer's own summand beside it.

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
    check_arguments(estimator, samples, max_examples, backend)
    if backend == "reference" or estimator == "batched":
        refuse(f"backend {backend!r}, estimator {estimator!r}", model.parameters())
    if backend == "reference":
        model, accumulate_dtype = in_float64(model), torch.float64
    chosen = select_parameters(model, parameters)
    mesh = mesh_of(chosen.values())
    totals = Totals(chosen, accumulate_dtype)
    shift = shifts_labels(model) if shift_labels is None else shift_labels
    draw = Draw(estimator, samples, generator)
    engine: Engine
    if backend == "reference" or estimator == "batched":
        engine = Autograd(model, chosen, totals, draw, shift)
    else:
        products = product_squares(backend, next(iter(chosen.values())).device)

        def sink(name: str, uses: list[Use]) -> None:
            total = totals[name] if mesh is None else zeros(chosen[name], accumulate_dtype)
            add_squares(total, uses, products, positionwise=estimator == "positionwise")
            if mesh is not None:
                totals[name].add_(scattered(total, chosen[name]))

        engine = Captured(Capture(model, chosen, sink), draw, shift, mesh)
    engine.run(batches, next(iter(chosen.values())), max_examples, progress)
    divisor = engine.units if estimator == "batched" else engine.examples
    return DiagonalFisher(
        values=totals.mean(divisor),
        estimator=estimator,
        samples=samples if estimator == "sample" else None,
        examples=engine.examples,
        tokens=engine.tokens,
    )


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


def check_arguments(estimator: str, samples: int, max_examples: int | None, backend: str) -> None:
    """Raise ValueError, naming it, if an argument is out of range."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: {estimator!r} is none of {', '.join(ESTIMATORS)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is none of {', '.join(BACKENDS)}")
    if samples < 1 or (samples > 1 and estimator != "sample"):
        raise ValueError(f"samples: {samples} with estimator {estimator!r}; give 1, or more with 'sample'")
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples: {max_examples} is not positive")
