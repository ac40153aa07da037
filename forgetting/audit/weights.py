"""Which weights moved, in how many directions, and whether ½ Δθᵀ F Δθ foretells the KL that was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.fisher import DiagonalFisher


@dataclass(frozen=True, slots=True)
class LayerChange:
    """One layer's Δ = θ − θ_base.

    Attributes:
        layer: ``embeddings``, ``block 0`` ..., ``final norm``, ``head``.
        parameters: Their number.
        change, relative: ‖Δ‖ and ‖Δ‖ / ‖θ_base‖.
        share: Of the whole model's ‖Δ‖².
        predicted_kl: Its part of ½ Σ F Δ², nats per token; ``None`` without a Fisher, or where it lacks a parameter.
    """

    layer: str
    parameters: int
    change: float
    relative: float
    share: float
    predicted_kl: float | None


@dataclass(frozen=True, slots=True)
class MatrixRank:
    """Directions of one matrix's Δ (:mod:`forgetting.analysis.weight_change`).

    Attributes:
        layer, kind: Where it is, and its name within the layer.
        effective_rank: exp of the entropy of its singular values (Roy & Vetterli 2007).
        stable_rank: ‖Δ‖_F² / ‖Δ‖₂² (Rudelson & Vershynin 2007).
        full_rank: The most that either could be.
    """

    layer: str
    kind: str
    effective_rank: float
    stable_rank: float
    full_rank: int


@dataclass(frozen=True, slots=True)
class WeightChange:
    """What :func:`audit_weights` found.

    Attributes:
        layers: In the model's order.
        matrices: Those that moved, in the model's order.
        relative: ‖Δ‖ / ‖θ_base‖ of the whole model.
        predicted_kl: ½ Δθᵀ F Δθ, nats per token, F diagonal; ``None`` without a Fisher, or where it lacks a parameter
            that may have moved (the head of a tuned model whose base has it tied to the embeddings).
        measured_kl: As it was given.
        ratio: Predicted over measured: 1 where the change is small and the diagonal is enough; ``None`` where one is
            missing, or the measured one is not above 0.
    """

    layers: tuple[LayerChange, ...]
    matrices: tuple[MatrixRank, ...]
    relative: float
    predicted_kl: float | None
    measured_kl: float | None
    ratio: float | None


def general_fisher(
    base_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: list[str],
    *,
    max_length: int,
    max_examples: int = 128,
    batch_size: int = 16,
    seed: int = 0,
) -> DiagonalFisher:
    """Diagonal Fisher information of the base model on general text: labels drawn from the model, unit the document.

    Args:
        base_model: Left as it is; every parameter must require gradients.
        tokenizer: Its own.
        documents: Texts.
        max_length: Tokens of a document.
        max_examples: The first so many documents are used.
        batch_size: Documents per backward pass.
        seed: Of the drawn labels.

    Raises:
        ValueError: naming a parameter whose layer has no rule.
        UsageError: if no document has a token to predict.
    """
    import torch

    from forgetting.fisher import diagonal_fisher
    from forgetting.tasks.encode import encode_texts
    from forgetting.trainer import padded_batches

    features = encode_texts(tokenizer, documents[:max_examples], max_length)
    return diagonal_fisher(
        base_model,
        padded_batches(features, tokenizer, batch_size),
        max_examples=max_examples,
        generator=torch.Generator().manual_seed(seed),
    )


def audit_weights(
    base_model: PreTrainedModel,
    model: PreTrainedModel,
    *,
    fisher: DiagonalFisher | None = None,
    measured_kl: float | None = None,
) -> WeightChange:
    """Measure the change of every layer and matrix, in float64; an active adapter counts as merged.

    Args:
        base_model: The reference.
        model: The same architecture, possibly within a peft wrapper.
        fisher: Of the base model on general text (:func:`general_fisher`), of an estimator whose unit is the example.
        measured_kl: KL(base ‖ tuned) on text of that kind, nats per token, to set beside ½ Δθᵀ F Δθ.

    Raises:
        ValueError: if the Fisher is of another model, or of an estimator whose unit is not the example.
    """
    from forgetting.analysis.weight_change import pooled_changes, weight_changes

    table = weight_changes(base_model, model, fisher)
    per_token = fisher.examples / fisher.tokens if fisher is not None else math.nan
    layers = []
    for row in _rows(pooled_changes(table, "layer")):
        predicted = row.get("fisher_change", math.nan) * per_token
        layers.append(
            LayerChange(
                layer=row["layer"],
                parameters=int(row["parameters"]),
                change=float(row["change"]),
                relative=float(row["relative"]),
                share=float(row["share"]),
                predicted_kl=None if math.isnan(predicted) else float(predicted),
            )
        )
    matrices = tuple(
        MatrixRank(
            row["layer"],
            row["kind"],
            float(row["effective_rank"]),
            float(row["stable_rank"]),
            int(row["full_rank"]),
        )
        for row in _rows(table[table["full_rank"].notna() & (table["change"] > 0)])
    )
    whole = float((table["change"] ** 2).sum()) ** 0.5, float((table["norm"] ** 2).sum()) ** 0.5
    predicted_kl = None
    if fisher is not None and table["fisher_change"].notna().all():  # a part of the sum is no estimate of it
        predicted_kl = float(table["fisher_change"].sum()) * per_token
    known = predicted_kl is not None and measured_kl is not None and measured_kl > 0
    return WeightChange(
        layers=tuple(layers),
        matrices=matrices,
        relative=whole[0] / whole[1],
        predicted_kl=predicted_kl,
        measured_kl=measured_kl,
        ratio=predicted_kl / measured_kl if known else None,  # type: ignore[operator]  # both are floats where known
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
