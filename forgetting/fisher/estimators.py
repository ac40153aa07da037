"""Whose labels the gradients are taken for: observed, drawn from the model, or every one of its classes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from forgetting.fisher.examples import IGNORED, Examples, compute_dtype

Estimator = Literal["exact", "sample", "empirical", "batched", "positionwise"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
MAX_CLASSES = 1000
"""``exact`` takes a backward pass per class, and per class and position of a language model."""


def shifts_labels(model: nn.Module) -> bool | None:
    """Whether a model's logits at a token predict the next one; ``None`` if it does not tell.

    It tells by an attribute ``shifts_labels``, or by the name of its class. Wrappers (peft's, DistributedDataParallel)
    are looked through.
    """
    unwrap = getattr(model, "get_base_model", None)
    inner = unwrap() if callable(unwrap) else getattr(model, "module", model)
    declared = getattr(inner, "shifts_labels", None)
    if isinstance(declared, bool):
        return declared
    name = type(inner).__name__
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        return False
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return True
    return False if name.endswith(("ForMaskedLM", "ForTokenClassification", "Classification")) else None


class Targets:
    """What a batch predicts, and the gradients of its log-likelihood with respect to the logits.

    Args:
        labels: (B, T) or (B,), int64; −100 where nothing is predicted.
        examples: The batch's.
        shift: The logits at a token predict the next one. What would predict an example's first token is left out.
    """

    def __init__(self, labels: Tensor, examples: Examples, shift: bool) -> None:
        if labels.dtype != torch.int64 or labels.dim() not in (1, 2):
            raise ValueError(
                f"diagonal_fisher: labels are {labels.dtype} of shape {tuple(labels.shape)}; give int64, (B, T) or (B,)"
            )
        labels = labels.clone()
        if examples.spans is not None and labels.numel() == examples.spans.tokens:
            outside = torch.ones(labels.numel(), dtype=torch.bool)
            for span in examples.spans:
                outside[span] = False
            labels.view(-1)[outside.to(labels.device)] = IGNORED  # a padded token is nobody's to predict
        if shift:
            if examples.spans is not None:
                labels.view(-1)[[start for start in examples.spans.starts if start < labels.numel()]] = IGNORED
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
        self.labels = labels
        flat = labels.flatten() != IGNORED
        per_row = labels[0].numel()
        spans = examples.spans if examples.predicts_tokens else None
        ranges = (
            list(spans) if spans is not None else [slice(i * per_row, (i + 1) * per_row) for i in range(len(labels))]
        )
        self.predicted = [int(flat[span].sum()) for span in ranges]
        """Predicted labels of each example, in order."""
        self._spans = ranges
        self._drawn = slice(None)

    @property
    def examples(self) -> int:
        """Examples with a predicted label."""
        return sum(count > 0 for count in self.predicted)

    @property
    def tokens(self) -> int:
        """Predicted labels."""
        return sum(self.predicted)

    def keep_first(self, count: int) -> None:
        """Let only the first ``count`` examples that have a predicted label predict anything."""
        flat = self.labels.view(-1)
        left = count
        for i, span in enumerate(self._spans):
            if self.predicted[i] and left <= 0:
                flat[span] = IGNORED
                self.predicted[i] = 0
            left -= self.predicted[i] > 0

    def rows(self, part: slice) -> Targets:
        """The targets of some rows, whose labels are drawn as they are in the whole batch; of no row, the first's none.

        Counts stay those of the batch.
        """
        own = copy.copy(self)
        own.labels = self.labels[part] if part.start < part.stop else torch.full_like(self.labels[:1], IGNORED)
        before = int((self.labels[: part.start] != IGNORED).sum())
        own._drawn = slice(before, before + int((own.labels != IGNORED).sum()))
        return own

    def output_gradients(
        self, logits: Tensor, estimator: Estimator, samples: int, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Yield gradients with respect to the logits, whose squares' sum over the yields is the estimator's.

        For a label y at a position this is √w (1_y − p): w = 1 for an observed label; 1/``samples`` for a drawn one;
        p(y) for ``exact``, one position and class at a time, since labels at different positions are independent
        given the inputs, and the score's mean is zero: the cross terms vanish.

        Yields:
            The logits' shape and dtype.

        Raises:
            ValueError: for ``exact`` with more than 1,000 classes.
        """
        labels = self.labels.to(logits.device)
        if logits.shape[:-1] != labels.shape or logits.shape[-1] < 2 or int(labels.max()) >= logits.shape[-1]:
            raise ValueError(
                f"diagonal_fisher: logits of shape {tuple(logits.shape)} do not fit labels of shape "
                f"{tuple(labels.shape)} up to {int(labels.max())}; a class needs an output each"
            )
        chosen = labels != IGNORED
        probabilities = logits.detach().to(compute_dtype(logits)).softmax(-1)
        if estimator == "exact":
            yield from self._every_class(probabilities, chosen, logits.dtype)
            return
        if estimator != "sample":
            yield _score(probabilities, labels, chosen, 1.0).to(logits.dtype)
            return
        draws = self._uniform(samples, generator)
        for sample in range(samples):
            drawn = labels.clone()
            drawn[chosen] = _inverse_cdf(probabilities[chosen], draws[sample])
            last = sample == samples - 1
            values = probabilities if last else probabilities.clone()
            yield _score(values, drawn, chosen, samples**-0.5).to(logits.dtype)

    def _uniform(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """(samples, predicted labels), float64, drawn example by example: any split into batches draws the same."""
        device = generator.device if generator is not None else "cpu"
        parts = [
            torch.rand(samples, count, generator=generator, device=device, dtype=torch.float64)
            for count in self.predicted
            if count
        ]
        return torch.cat(parts, dim=1)[:, self._drawn]

    def _every_class(self, probabilities: Tensor, chosen: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        classes = probabilities.shape[-1]
        if classes > MAX_CLASSES:
            raise ValueError(
                f"estimator 'exact': the model has {classes} classes, and a backward pass is needed for each "
                f"(at most {MAX_CLASSES}); use 'sample'"
            )
        positions = [...] if chosen.dim() == 1 else [(slice(None), t) for t in chosen.any(0).nonzero()[:, 0].tolist()]
        for position in positions:
            at = torch.zeros_like(chosen)
            at[position] = chosen[position]
            for label in range(classes):
                labels = torch.full_like(at, label, dtype=torch.long)
                weight = probabilities[..., label].sqrt()[..., None]
                yield (_score(probabilities.clone(), labels, at, 1.0) * weight).to(dtype)


def _score(probabilities: Tensor, labels: Tensor, chosen: Tensor, scale: float) -> Tensor:
    """Return ``scale`` · (1_y − p) where chosen, else 0; overwrites ``probabilities``."""
    score = probabilities.neg_()
    index = labels.masked_fill(~chosen, 0)[..., None]
    score.scatter_add_(-1, index, torch.ones_like(index, dtype=score.dtype))
    return score.mul_((chosen * scale).to(score.dtype)[..., None])


def _inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw a class from each row: (N, V) and (N,) to (N,) int64."""
    classes = probabilities.shape[-1]
    size = max(1, round(classes**0.5))
    blocks = torch.nn.functional.pad(probabilities, (0, -classes % size)).unflatten(-1, (-1, size))
    # A running sum of floats on a GPU differs from call to call: it is taken on the CPU, over blocks, then within one.
    sums = blocks.sum(-1).cpu().double().cumsum(-1)
    threshold = uniform.cpu()[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, threshold, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    rows = torch.arange(len(block), device=probabilities.device)
    within = blocks[rows, block[:, 0].to(probabilities.device)].cpu().double().cumsum(-1)
    place = torch.searchsorted(within, threshold - before, right=True).clamp_(max=size - 1)
    return (block * size + place)[:, 0].clamp_(max=classes - 1).to(probabilities.device)
