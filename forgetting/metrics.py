"""The metrics: pure functions of the task matrix R, the capability matrix G and per-item outcomes.

R has shape (T+1, T): ``R[i, j]`` is the score on task j after training on the first i tasks, row 0 is the
base model. G has shape (T+1, C) with the same rows. Tasks are numbered 1..T in the formulas; column j of a
formula is ``R[:, j - 1]`` here. Scores are "higher is better"; everything is computed in float64. With T = 1
the metrics that divide by T − 1 are undefined and returned as NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class MeanRetention(NamedTuple):
    """Mean over the capabilities whose retention is defined (NaN where none is), and how many are not."""

    mean: float
    defined: int
    undefined: int


class ItemFlips(NamedTuple):
    """Shares of all n items: right before and wrong after (``lost``, 1→0), and the reverse (``gained``, 0→1).

    The ``_adjusted`` ones have the flips removed that two independent rounds of guessing would make.
    """

    lost: float
    gained: float
    lost_adjusted: float
    gained_adjusted: float
    n: int


def _matrix(name: str, values: ArrayLike) -> Floats:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"{name}: has shape {matrix.shape}; needs two axes, rows 0..T and columns")
    return matrix


def _task_matrix(R: ArrayLike) -> tuple[Floats, int]:
    matrix = _matrix("R", R)
    rows, tasks = matrix.shape
    if tasks < 1 or rows != tasks + 1:
        raise ValueError(f"R: has shape {matrix.shape}; needs (T+1, T), the base model's row and one after each task")
    return matrix, tasks


def _capability_matrix(G: ArrayLike) -> Floats:
    matrix = _matrix("G", G)
    if matrix.shape[0] < 2:
        raise ValueError(f"G: has shape {matrix.shape}; needs (T+1, C) with T >= 1, the base model's row first")
    return matrix


def average_accuracy(R: ArrayLike) -> float:
    """ACC = (1/T) Σ_j R[T, j]: the mean score over all tasks after the last one (Lopez-Paz & Ranzato 2017).

    Args:
        R: Task matrix, shape (T+1, T).

    Raises:
        ValueError: if R has another shape.
    """
    matrix, _ = _task_matrix(R)
    return float(matrix[-1].mean())


def learning_accuracy(R: ArrayLike) -> float:
    """LA = (1/T) Σ_j R[j, j]: the mean score on each task right after training on it (Riemer et al. 2019).

    Args:
        R: Task matrix, shape (T+1, T).

    Raises:
        ValueError: if R has another shape.
    """
    matrix, _ = _task_matrix(R)
    return float(np.diagonal(matrix, offset=-1).mean())


def intransigence(R: ArrayLike, single_task: ArrayLike) -> float:
    """(1/T) Σ_j single_task[j] − LA: what is not learned because of the method (after Chaudhry et al. 2018).

    Chaudhry's reference is a model trained on all tasks so far at once; here it is a fine-tune of the base
    model on each task alone.

    Args:
        R: Task matrix, shape (T+1, T).
        single_task: Scores of those fine-tunes on their own task, shape (T,).

    Raises:
        ValueError: if a shape is another.
    """
    _, tasks = _task_matrix(R)
    single = np.asarray(single_task, dtype=np.float64)
    if single.shape != (tasks,):
        raise ValueError(f"single_task: has shape {single.shape}; needs ({tasks},), one score per task")
    return float(single.mean()) - learning_accuracy(R)


def backward_transfer(R: ArrayLike) -> float:
    """BWT = 1/(T−1) Σ_{j<T} (R[T, j] − R[j, j]) (Lopez-Paz & Ranzato 2017); below 0 where it forgot.

    Args:
        R: Task matrix, shape (T+1, T).

    Returns:
        BWT, or NaN for T = 1: there is no earlier task.

    Raises:
        ValueError: if R has another shape.
    """
    matrix, tasks = _task_matrix(R)
    if tasks == 1:
        return float("nan")
    return float((matrix[-1] - np.diagonal(matrix, offset=-1))[:-1].mean())


def forward_transfer(R: ArrayLike) -> float:
    """FWT = 1/(T−1) Σ_{j>1} (R[j−1, j] − R[0, j]) (Lopez-Paz & Ranzato 2017), with the base as reference.

    What earlier tasks did to a task before it was trained on. Lopez-Paz & Ranzato subtract the score at
    random initialisation; for a pretrained model, row 0 is the one that it must be compared with.

    Args:
        R: Task matrix, shape (T+1, T).

    Returns:
        FWT, or NaN for T = 1: no task comes before another.

    Raises:
        ValueError: if R has another shape.
    """
    matrix, tasks = _task_matrix(R)
    if tasks == 1:
        return float("nan")
    return float((np.diagonal(matrix) - matrix[0])[1:].mean())


def forgetting_measure(R: ArrayLike) -> float:
    """1/(T−1) Σ_{j<T} (max_{j≤l<T} R[l, j] − R[T, j]) (Chaudhry et al. 2018).

    From a task's best score since it was learned to its last one. It is not −BWT: it is at least that, and
    more where a task improved before it was forgotten.

    Args:
        R: Task matrix, shape (T+1, T).

    Returns:
        The measure, or NaN for T = 1: there is no earlier task.

    Raises:
        ValueError: if R has another shape.
    """
    matrix, tasks = _task_matrix(R)
    if tasks == 1:
        return float("nan")
    return float(np.mean([matrix[j:tasks, j - 1].max() - matrix[tasks, j - 1] for j in range(1, tasks)]))


def retention(G: ArrayLike, chance: ArrayLike, base_stderr: ArrayLike) -> Floats:
    """(G[T, c] − chance_c) / (G[0, c] − chance_c): the share of the base model's skill that is left.

    1 is all of it, 0 is chance, below 0 is worse than chance; above 1 is a capability that improved.

    Args:
        G: Capability matrix, shape (T+1, C).
        chance: Score of guessing per capability, shape (C,).
        base_stderr: Standard error of ``G[0]`` over items, shape (C,), in the scores' unit; NaN where
            unknown.

    Returns:
        Shape (C,); NaN where the base model is not above chance by two standard errors: what was never there
        cannot be retained, and the quotient would be noise.

    Raises:
        ValueError: if a shape is another, or a standard error is negative.
    """
    matrix = _capability_matrix(G)
    columns = matrix.shape[1]
    chances, stderr = np.asarray(chance, dtype=np.float64), np.asarray(base_stderr, dtype=np.float64)
    for name, values in (("chance", chances), ("base_stderr", stderr)):
        if values.shape != (columns,):
            raise ValueError(f"{name}: has shape {values.shape}; needs ({columns},), one value per capability")
    if (stderr < 0).any():
        raise ValueError(f"base_stderr: {stderr.min()} is negative; standard errors are 0 or more")
    above = matrix[0] - chances
    defined = above > 2 * stderr
    return np.where(defined, (matrix[-1] - chances) / np.where(defined, above, 1.0), np.nan)


def mean_retention(retained: ArrayLike) -> MeanRetention:
    """Mean of :func:`retention` over the capabilities where it is defined, with the number where it is not.

    Args:
        retained: What :func:`retention` returned, shape (C,).

    Raises:
        ValueError: if it has another number of axes.
    """
    values = np.asarray(retained, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"retained: has shape {values.shape}; needs one axis, a value per capability")
    known = values[~np.isnan(values)]
    return MeanRetention(float(known.mean()) if known.size else float("nan"), known.size, values.size - known.size)


def delta_capability(G: ArrayLike) -> float:
    """ΔG = (1/C) Σ_c (G[T, c] − G[0, c]): general ability delta (TRACE, Wang et al. 2023, arXiv 2310.06762).

    Args:
        G: Capability matrix, shape (T+1, C).

    Returns:
        ΔG in the scores' unit, or NaN for C = 0.

    Raises:
        ValueError: if G has another shape.
    """
    matrix = _capability_matrix(G)
    return float((matrix[-1] - matrix[0]).mean()) if matrix.shape[1] else float("nan")


def delta_cross_entropy(before: float, after: float) -> float:
    """ΔCE = after − before, the change of the cross-entropy on one text; above 0 the text got harder.

    Args:
        before: Cross-entropy of the base model, nats per token.
        after: Cross-entropy of the tuned model on the same text, nats per token.

    Raises:
        ValueError: if either is negative, which no cross-entropy is.
    """
    for name, value in (("before", before), ("after", after)):
        if value < 0:
            raise ValueError(f"{name}: {value} is negative; a cross-entropy is 0 or more")
    return after - before


def flips(base_items: ArrayLike, tuned_items: ArrayLike, chance: float = 0.0) -> ItemFlips:
    """Item flips between two models on the same items, in the same order, as shares of all n items.

    ``lost`` = n₁₀/n and ``gained`` = n₀₁/n, where n₁₀ counts items right before and wrong after. A guesser
    flips by luck, so for multiple choice they are adjusted under the response model of Harmon et al. 2025
    (arXiv 2510.17776; the classical correction for guessing, Lord & Novick 1968): a model knows an item and
    is right, or guesses and is right with probability c = ``chance``, independently before and after. Then
    items known to neither, a share u, give u (1−c)² of wrong-wrong ones and u c (1−c) lucky flips either way,
    and those known only before, a share k, give k (1−c) observed losses. Solved for k with u = n₀₀ / (n
    (1−c)²)::

        lost_adjusted   = max(0, (n₁₀/n) / (1−c) − c (n₀₀/n) / (1−c)²)
        gained_adjusted = max(0, (n₀₁/n) / (1−c) − c (n₀₀/n) / (1−c)²)

    With c = 0 nothing is changed. Two models of which one was tuned from the other guess alike, and flip less
    by luck than independent guesses do: the adjusted shares are then lower bounds.

    Args:
        base_items: Outcomes of the base model, 0 or 1, shape (n,), n ≥ 1.
        tuned_items: Outcomes of the tuned model, 0 or 1, shape (n,).
        chance: Probability of guessing right, in [0, 1).

    Raises:
        ValueError: if the shapes differ or are empty, an outcome is not 0 or 1, or chance is not in [0, 1).
    """
    base, tuned = np.asarray(base_items, dtype=np.float64), np.asarray(tuned_items, dtype=np.float64)
    if base.ndim != 1 or base.shape != tuned.shape or not base.size:
        raise ValueError(f"items: have shapes {base.shape} and {tuned.shape}; need one outcome per item in both")
    for name, items in (("base_items", base), ("tuned_items", tuned)):
        if not np.isin(items, (0.0, 1.0)).all():
            raise ValueError(f"{name}: hold an outcome that is neither 0 nor 1; flips are of right and wrong")
    if not 0 <= chance < 1:
        raise ValueError(f"chance: {chance} is not in [0, 1)")
    lost, gained = float(((base == 1) & (tuned == 0)).mean()), float(((base == 0) & (tuned == 1)).mean())
    lucky = chance * float(((base == 0) & (tuned == 0)).mean()) / (1 - chance) ** 2
    return ItemFlips(
        lost=lost,
        gained=gained,
        lost_adjusted=max(0.0, lost / (1 - chance) - lucky),
        gained_adjusted=max(0.0, gained / (1 - chance) - lucky),
        n=base.size,
    )
