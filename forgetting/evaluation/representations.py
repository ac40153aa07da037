"""How alike two models represent the same inputs, layer by layer: linear CKA, in one pass over the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from forgetting.evaluation.likelihood import evaluating
from forgetting.models import logits_before

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel


class LinearCKA:
    """Linear centred kernel alignment of two representations of the same N inputs (Kornblith et al. 2019).

    With X (N, D₁) and Y (N, D₂), their columns centred::

        CKA = ‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F)

    the feature-space form (arXiv 1905.00414, section 3), which equals HSIC(XXᵀ, YYᵀ) normalised. It is 1 for
    representations that differ by a rotation, a shift and one scale, and at least 0. The three products are
    accumulated in float64 as the inputs come, with the update of means and products of Chan, Golub & LeVeque 1983:
    memory is (D₁ + D₂)² numbers, however large N is.

    It is biased upwards where N is not many times D: unrelated representations of fewer inputs than features look
    alike. Take at least ten inputs per feature.

    Attributes:
        n: Inputs so far.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = torch.zeros(0, dtype=torch.float64)  # (D₁ + D₂,), X beside Y
        self._products = torch.zeros(0, 0, dtype=torch.float64)  # (D₁ + D₂, D₁ + D₂), of centred columns
        self._split = 0  # D₁

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add inputs.

        Args:
            x: The first representation of n further inputs, (n, D₁).
            y: The second one of the same inputs in the same order, (n, D₂); moved to x's device.

        Raises:
            ValueError: if the shapes do not fit each other, or those that were added before.
        """
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
            raise ValueError(f"x and y: have shapes {tuple(x.shape)} and {tuple(y.shape)}; need (n, D) of equal n")
        both = torch.cat([x.double(), y.to(x.device).double()], 1)
        if not self.n:
            self._mean, self._split = both.new_zeros(both.shape[1]), x.shape[1]
            self._products = both.new_zeros(both.shape[1], both.shape[1])
        if (x.shape[1], both.shape[1]) != (self._split, len(self._mean)):
            widths = self._split, len(self._mean) - self._split
            raise ValueError(f"x and y: have widths {x.shape[1]} and {y.shape[1]}; those before had {widths}")
        if not len(both):
            return
        total, mean = self.n + len(both), both.mean(0)
        centred, shift = both - mean, mean - self._mean
        self._products += centred.T @ centred + torch.outer(shift, shift) * (self.n * len(both) / total)
        self._mean += shift * (len(both) / total)
        self.n = total

    def value(self) -> float:
        """Return the CKA of what was added; NaN where a representation does not vary."""
        first, second = slice(None, self._split), slice(self._split, None)
        own = self._products[first, first].norm() * self._products[second, second].norm()
        return float(self._products[first, second].square().sum() / own) if own > 0 else float("nan")


def layer_cka(
    base_model: PreTrainedModel, model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]
) -> pd.DataFrame:
    """Compare the hidden states of two models, layer by layer: an input is a token (of an image, a patch).

    Args:
        base_model: Left in the mode it was in.
        model: The same; it has as many layers, which may be of another width. Virtual tokens that it reads before its
            input are left out.
        batches: Inputs of both models by keyword: ``input_ids`` and ``attention_mask``, (B, T), for instance from
            :func:`forgetting.trainer.padded_batches` of features of text; padding is left out, ``labels`` are not
            looked at.

    Returns:
        A row per layer, ``layer``, ``cka`` and ``tokens`` (their number): ``embeddings``, ``block 0``, ... The last
        block's state is what the model hands to its head: in transformers' language models after the final norm.

    Raises:
        ValueError: if there is no batch, the models have not as many layers, their outputs have no hidden states of
            shape (B, T, D), or rows are packed.
    """
    import pandas as pd

    layers: list[LinearCKA] = []
    with evaluating(base_model), evaluating(model):
        for batch in batches:
            ours, theirs = _hidden_states(base_model, batch), _hidden_states(model, batch)
            if len(ours) != len(theirs):
                raise ValueError(f"models: have {len(ours) - 1} and {len(theirs) - 1} layers; need as many in both")
            layers = layers or [LinearCKA() for _ in ours]
            keep = _tokens(batch, ours[0])
            for layer, x, y in zip(layers, ours, theirs, strict=True):
                layer.add(x[keep.to(x.device)], y[keep.to(y.device)])
    if not layers:
        raise ValueError("batches: there is none; give at least one")
    names = ["embeddings", *(f"block {i}" for i in range(len(layers) - 1))]
    rows = zip(names, [layer.value() for layer in layers], [layer.n for layer in layers], strict=True)
    return pd.DataFrame(rows, columns=["layer", "cka", "tokens"])


def _hidden_states(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The states of every layer, each (B, T, D)."""
    inputs: dict[str, Any] = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
    states = getattr(model(**inputs, output_hidden_states=True), "hidden_states", None)
    if not states or any(state.ndim != 3 for state in states):
        raise ValueError(
            f"model {type(model).__name__}: its output has no hidden states of shape (B, T, D); give a decoder, an "
            "encoder or a vision transformer (of an encoder-decoder, get_encoder())"
        )
    return [state[:, logits_before(model) :] for state in states]


def _tokens(batch: Mapping[str, torch.Tensor], state: torch.Tensor) -> torch.Tensor:
    """Which positions are input, (B, T); all where there is no mask."""
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(state.shape[:2], dtype=torch.bool)
    if mask.shape != state.shape[:2]:
        raise ValueError(f"attention_mask: has shape {tuple(mask.shape)}; need {tuple(state.shape[:2])}, rows unpacked")
    return mask.bool()
