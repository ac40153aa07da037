"""Which weights a fine-tune moved, by how much and in how many directions: a table per parameter, pooled by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from transformers import PreTrainedModel

    from forgetting.fisher.storage import DiagonalFisher


def effective_rank(matrix: Tensor) -> float:
    """exp(H(p)), with p_i = σ_i / Σσ and H the Shannon entropy in nats (Roy & Vetterli 2007, The effective rank).

    Between 1 and the rank; the rank where all its singular values σ are equal. Rounding counts: many small singular
    values (a tuned model stored in bfloat16) raise it, where they hardly touch :func:`stable_rank`.

    Args:
        matrix: Two axes.

    Returns:
        The effective rank; 0 for a matrix of zeros.

    Raises:
        ValueError: if the matrix has another number of axes, or a value is not finite.
    """
    return _ranks(_singular_values(matrix))[0]


def stable_rank(matrix: Tensor) -> float:
    """‖A‖_F² / ‖A‖₂², the numerical rank of Rudelson & Vershynin 2007 (Sampling from large matrices).

    Between 1 and the rank, and little moved by small singular values.

    Args:
        matrix: Two axes.

    Returns:
        The stable rank; 0 for a matrix of zeros.

    Raises:
        ValueError: if the matrix has another number of axes, or a value is not finite.
    """
    return _ranks(_singular_values(matrix))[1]


def _singular_values(matrix: Tensor) -> Tensor:
    import torch

    if matrix.ndim != 2 or not matrix.isfinite().all():
        raise ValueError(f"matrix: has shape {tuple(matrix.shape)}; need two axes and finite values")
    return torch.linalg.svdvals(matrix.double())


def _ranks(singular_values: Tensor) -> tuple[float, float]:
    import torch

    largest = singular_values.max() if singular_values.numel() else torch.tensor(0.0)
    if not largest > 0:
        return 0.0, 0.0
    scaled = singular_values / largest  # squares of the smallest numbers would be 0
    shares = scaled / scaled.sum()
    return float(torch.special.entr(shares).sum().exp()), float(scaled.square().sum())


def weight_changes(
    base_model: PreTrainedModel, model: PreTrainedModel, fisher: DiagonalFisher | None = None
) -> pd.DataFrame:
    """Measure the change Δ = θ − θ_base of every parameter, in float64.

    What is compared with what is :func:`forgetting.evaluation.drift.compared_weights`'s: an active adapter counts as
    what merging it would change, and heads that tasks add are left out.

    Args:
        base_model: The reference.
        model: The same architecture, possibly within a peft wrapper.
        fisher: Of the base model; with it there is a column ``fisher_change``.

    Returns:
        A row per parameter, in the model's order:

        - ``layer`` (``embeddings``, ``block 0`` ..., ``final norm``, ``head``), ``kind`` (the parameter's name without
          its block), ``parameters`` (their number);
        - ``norm`` ‖θ_base‖, ``change`` ‖Δ‖, ``relative`` ‖Δ‖/‖θ_base‖ (infinite where the norm is 0 and Δ is not);
        - ``effective_rank`` and ``stable_rank`` of Δ, and ``full_rank``, the most they could be; the filters of a
          convolution (O, I, h, w) as a matrix (O, I·h·w); NaN for vectors;
        - ``fisher_change`` ½ Σ F Δ², nats per example, whose sum over the rows is
          :func:`forgetting.analysis.laws.second_order_rise`. NaN for a parameter that the Fisher has no value for.

    Raises:
        ValueError: if the Fisher has a parameter that the model has not, one of another shape, or an estimator whose
            unit is not the example.
    """
    import pandas as pd

    from forgetting.analysis.laws import second_order_rise
    from forgetting.evaluation.drift import compared_weights
    from forgetting.importance import blocks_and_kinds

    values = {} if fisher is None else fisher.values
    information = {name: value for name, value in values.items() if not name.startswith("heads.")}
    rows, names = [], []
    for name, layer, reference, tuned in compared_weights(base_model, model):
        delta = tuned - reference
        norm, change = float(reference.norm()), float(delta.norm())
        ranks, full = (float("nan"), float("nan")), float("nan")
        if delta.ndim > 1:
            matrix = delta.flatten(1)
            ranks, full = _ranks(_singular_values(matrix)), float(min(matrix.shape))
        row = {
            "layer": layer,
            "parameters": delta.numel(),
            "norm": norm,
            "change": change,
            "relative": _relative(change, norm),
            "effective_rank": ranks[0],
            "stable_rank": ranks[1],
            "full_rank": full,
        }
        if fisher is not None:
            own = {name: information.pop(name)} if name in information else {}
            rise = second_order_rise({name: reference}, {name: tuned}, replace(fisher, values=own))
            row["fisher_change"] = rise.per_example if own else float("nan")
        rows.append(row)
        names.append(name)
    if information:
        raise ValueError(f"fisher: has {next(iter(information))}, which the model has not; give the base model's own")
    frame = pd.DataFrame(rows)
    kinds = blocks_and_kinds(names)
    frame.insert(1, "kind", [kinds[name][1] for name in names])
    return frame


def _relative(change: float, norm: float) -> float:
    if norm:
        return change / norm
    return float("inf") if change else 0.0


def pooled_changes(changes: pd.DataFrame, by: Literal["layer", "kind"]) -> pd.DataFrame:
    """Pool the rows of :func:`weight_changes` over whole layers, or over kinds of parameters.

    Squared norms and ½ Σ F Δ² add up; ranks are of one matrix, and are left out. By layer, ``relative`` is what
    :func:`forgetting.evaluation.drift.weight_change` gives and the records hold.

    Args:
        changes: What :func:`weight_changes` returned.
        by: ``layer`` or ``kind``.

    Returns:
        A row per layer or kind, in order of first occurrence: ``parameters``, ``norm``, ``change``, ``relative``,
        ``share`` of the model's Σ Δ² (0 where nothing moved), and ``fisher_change`` where the table has it, NaN where
        any part of it is.

    Raises:
        ValueError: if ``by`` is another word.
    """
    if by not in ("layer", "kind"):
        raise ValueError(f"by: {by!r} is not 'layer' or 'kind'")
    columns = ["parameters", "norm", "change", *(["fisher_change"] if "fisher_change" in changes else [])]
    squared = changes.assign(norm=changes["norm"] ** 2, change=changes["change"] ** 2)
    pooled = squared.groupby(by, sort=False)[columns].sum(skipna=False).reset_index()
    share = pooled["change"] / (pooled["change"].sum() or 1.0)
    pooled["norm"], pooled["change"] = pooled["norm"] ** 0.5, pooled["change"] ** 0.5
    relative = [_relative(change, norm) for change, norm in zip(pooled["change"], pooled["norm"], strict=True)]
    pooled.insert(4, "relative", relative)
    pooled.insert(5, "share", share)
    return pooled
