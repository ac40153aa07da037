"""Diagonal Fisher information per sequence, by one backward pass per example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Estimator = Literal["sample", "empirical"]


@dataclass(frozen=True)
class DiagonalFisher:
    """The diagonal of the Fisher information, and what it is.

    Attributes:
        values: Parameter name (a tied parameter once) to a float32 tensor of its shape: the mean over examples
            of the squared gradient of log p(sequence).
        estimator: ``sample`` or ``empirical``.
        examples: Sequences averaged over.
        tokens: Predicted tokens in them.
    """

    values: dict[str, Tensor]
    estimator: Estimator
    examples: int
    tokens: int


def _rows(batches: Iterable[Mapping[str, Tensor]]) -> Iterable[dict[str, Tensor]]:
    """Yield batches of one, padding cut off where an attention mask tells of it."""
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            single = {key: value[row : row + 1] for key, value in batch.items()}
            mask = single.get("attention_mask")
            if mask is not None and mask.dim() == 2:
                kept = mask[0].bool()
                single = {key: value[:, kept] for key, value in single.items() if key != "attention_mask"}
            yield single


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    estimator: Estimator = "sample",
    max_examples: int | None = None,
    generator: torch.Generator | None = None,
) -> DiagonalFisher:
    """Diagonal Fisher information of a causal language model's trainable parameters.

    F = E_x E_y[(∂ log p(y | x) / ∂θ)∘²], where log p of a sequence is the sum over its predicted tokens: the
    unit is the sequence, summed, then squared (van de Ven 2025, arXiv 2502.11756). Squaring the gradient of a
    batch's mean instead, as is often done, gives another quantity.

    Args:
        model: Called with ``input_ids`` (1, T) without labels; its output has ``logits`` (1, T, V).
        batches: Mappings of tensors, each (B, T): ``input_ids``, ``labels`` (−100 where nothing is predicted),
            and optionally ``attention_mask``; any split into batches gives the same result.
        estimator: ``sample`` draws each predicted token from the model, given the true ones before it;
            ``empirical`` takes the observed one.
        max_examples: Stop after so many sequences.
        generator: Of the sampled labels, on the CPU.

    Returns:
        The mean over sequences with at least one predicted token. The model is left as found: mode,
        ``requires_grad``, and gradients (after an exception too).

    Raises:
        ValueError: if no parameter is trainable, or no sequence has a predicted token.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("diagonal_fisher: no parameter requires a gradient")
    parameters = list(named.values())
    totals = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    device = parameters[0].device
    was_training = model.training
    examples = tokens = 0
    model.eval()
    try:
        with torch.enable_grad():
            for row in _rows(batches):
                if max_examples is not None and examples >= max_examples:
                    break
                targets = row["labels"][0, 1:]
                predicted = (targets != -100).nonzero().squeeze(1)
                if not len(predicted):
                    continue
                inputs = {key: value.to(device) for key, value in row.items() if key != "labels"}
                logits = model(**inputs).logits[0, predicted.to(device)]  # (P, V)
                log_probs = logits.float().log_softmax(-1)
                if estimator == "sample":
                    chosen = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator)[:, 0]
                else:
                    chosen = targets[predicted]
                log_likelihood = log_probs[torch.arange(len(chosen)), chosen.to(device)].sum()
                gradients = torch.autograd.grad(log_likelihood, parameters, allow_unused=True)
                for total, gradient in zip(totals, gradients, strict=True):
                    if gradient is not None:
                        total.addcmul_(gradient.float(), gradient.float())
                examples += 1
                tokens += len(predicted)
    finally:
        model.train(was_training)
    if not examples:
        raise ValueError("diagonal_fisher: no sequence has a predicted token (all labels are -100)")
    values = {name: total.div_(examples) for name, total in zip(named, totals, strict=True)}
    return DiagonalFisher(values=values, estimator=estimator, examples=examples, tokens=tokens)
