"""What predicts forgetting best: forward KL, or one of its rivals (after Shenfeld et al. 2025, arXiv 2509.04259).

That paper finds that forgetting follows the forward KL divergence on the new task's inputs more closely than the
reverse KL, the total variation or the distance of the weights. :func:`compare_predictors` says how much better one
predictor does than another, and how sure that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.laws.fitting import Floats, check_level, variables
from forgetting.analysis.laws.polynomial import check_degree, check_distinct

RESAMPLES = 2000
_FLAT = 1e-12  # of a Gram matrix's largest eigenvalue: below it, the polynomial is not determined


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """A statistic of the points and its bootstrap percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a predictor does, or the difference of two (other − reference).

    Attributes:
        r2: Share of forgetting's variance that the polynomial explains on the points it was fitted on.
        rank: Spearman's correlation with forgetting.
        cv_rmse: Root mean square error of the polynomial at points that it was not fitted on, each group left out
            in turn, in forgetting's unit; smaller is better.
    """

    r2: Bootstrapped
    rank: Bootstrapped
    cv_rmse: Bootstrapped


@dataclass(frozen=True, slots=True)
class PredictorComparison:
    """Predictors of the same forgetting.

    Attributes:
        quality: By predictor.
        differences: By predictor other than the reference: its quality minus the reference's, over the same resamples.
        reference: What the others are compared with.
        degree: Of the polynomial.
        points, groups: How many points; in how many groups that were resampled and left out whole.
        resamples: How many were used.
        level: Of the intervals.
    """

    quality: Mapping[str, Quality]
    differences: Mapping[str, Quality]
    reference: str
    degree: int
    points: int
    groups: int
    resamples: int
    level: float


def compare_predictors(
    forgetting: ArrayLike,
    predictors: Mapping[str, ArrayLike],
    *,
    reference: str,
    degree: int = 2,
    groups: Iterable[object] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> PredictorComparison:
    """Compare how well each predictor alone predicts forgetting, by a polynomial and by rank.

    Intervals are percentiles of a bootstrap over groups: a group is drawn with all its points, and for all predictors
    at once, so that what they share cancels in the differences. All copies of a group are left out together in the
    cross-validation of a resample. Resamples that leave a polynomial undetermined are not used.

    Args:
        forgetting: Of n runs, shape (n,).
        predictors: By name, shape (n,) each: ``{"kl_forward": …, "kl_reverse": …, "l2": …}``.
        reference: The predictor that the others are compared with.
        degree: 1 or 2.
        groups: What belongs together (the seeds of one setting, the strengths of one method), n of them; each point
            alone where not given.
        resamples: Of the bootstrap.
        level: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        ValueError: if a shape, name, degree or number is not valid, or there are too few groups or distinct values.
    """
    if "forgetting" in predictors:
        raise ValueError("predictors: 'forgetting' is what is predicted; give the predictor another name")
    data = variables(forgetting=forgetting, **predictors)
    y = data.pop("forgetting")
    check_level(level)
    check_degree(degree)
    if reference not in data:
        raise ValueError(f"reference: {reference!r} is none of {', '.join(data)}")
    if resamples < 1:
        raise ValueError(f"resamples: {resamples} is not positive")
    labels = np.arange(y.size) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    if labels.size != y.size:
        raise ValueError(f"groups: {labels.size} for {y.size} points; need one each")
    count = int(labels.max()) + 1
    if count < degree + 3:
        raise ValueError(f"groups: {count} for degree {degree}; need at least {degree + 3}")
    check_distinct("forgetting", y, 2)
    for name, x in data.items():
        check_distinct(name, x, degree + 2)
    designs = {name: _powers(x, degree) for name, x in data.items()}
    copies = _copies(designs, labels, count, resamples, np.random.default_rng(seed))
    values = {name: _statistics(y, data[name], designs[name], labels, copies) for name in data}
    return PredictorComparison(
        quality={name: _quality(value, level) for name, value in values.items()},
        differences={
            name: _quality(value - values[reference], level) for name, value in values.items() if name != reference
        },
        reference=reference,
        degree=degree,
        points=y.size,
        groups=count,
        resamples=len(copies) - 1,
        level=level,
    )


def _powers(x: Floats, degree: int) -> Floats:
    """(n, degree + 1): powers of the standardised predictor, with which sums of products stay accurate."""
    return np.vander((x - x.mean()) / x.std(), degree + 1, increasing=True)


def _determined(design: Floats, labels: NDArray[np.intp], copies: Floats) -> NDArray[np.bool_]:
    """(R,) whether the polynomial is determined with each drawn group left out in turn."""
    left = _left_out(_sums(design[:, :, None] * design[:, None, :], labels, copies.shape[1]), copies)
    eigenvalues = np.linalg.eigvalsh(left)
    fine = eigenvalues[..., 0] > _FLAT * eigenvalues[..., -1]
    return np.asarray((fine | (copies == 0)).all(axis=1))


def _copies(
    designs: Mapping[str, Floats], labels: NDArray[np.intp], count: int, resamples: int, generator: np.random.Generator
) -> Floats:
    """(1 + R, groups): how often each group is drawn; the first row is the points as they are, R ≤ ``resamples``."""
    whole = np.ones((1, count))
    for name, design in designs.items():
        if not _determined(design, labels, whole)[0]:
            raise ValueError(
                f"{name}: takes too few distinct values to fit degree {design.shape[1] - 1} without one group"
            )
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    usable = np.all([_determined(design, labels, drawn) for design in designs.values()], axis=0)
    if not usable.any():
        raise ValueError(f"resamples: none of {resamples} determines every polynomial; draw more")
    return np.concatenate([whole, drawn[usable]])


def _sums(values: Floats, labels: NDArray[np.intp], count: int) -> Floats:
    """Sum over each group's points: (n, …) to (groups, …)."""
    total = np.zeros((count, *values.shape[1:]))
    np.add.at(total, labels, values)
    return total


def _left_out(per_group: Floats, copies: Floats) -> Floats:
    """(R, groups, …): the sum over a resample of all groups but one, with all its copies."""
    weighted = np.einsum("rg,g...->rg...", copies, per_group)
    return weighted.sum(axis=1, keepdims=True) - weighted


def _statistics(y: Floats, x: Floats, design: Floats, labels: NDArray[np.intp], copies: Floats) -> Floats:
    """(R, 3): R², Spearman's correlation and the cross-validated error of each resample."""
    count = copies.shape[1]
    weights = copies[:, labels]  # (R, n)
    total = weights.sum(axis=1)
    mean = (weights @ y) / total
    spread = np.einsum("rn,rn->r", weights, (y - mean[:, None]) ** 2)
    gram = _sums(design[:, :, None] * design[:, None, :], labels, count)  # (groups, K, K)
    moment = _sums(design * y[:, None], labels, count)  # (groups, K)
    whole = np.linalg.solve(np.einsum("rg,gkl->rkl", copies, gram), (copies @ moment)[..., None])[..., 0]
    unexplained = np.einsum("rn,rn->r", weights, (y - whole @ design.T) ** 2)
    r2 = 1 - unexplained / np.where(spread > 0, spread, np.nan)

    drawn = copies > 0
    squares = np.zeros(len(copies))
    lacking, lacking_moment = _left_out(gram, copies), _left_out(moment, copies)
    for group in range(count):
        rows = drawn[:, group]
        without = np.linalg.solve(lacking[rows, group], lacking_moment[rows, group, :, None])[..., 0]  # (r, K)
        inside = labels == group
        errors = (y[inside] - without @ design[inside].T) ** 2
        squares[rows] += copies[rows, group] * errors.sum(axis=1)
    return np.stack([r2, _spearman(x, y, weights), np.sqrt(squares / total)], axis=1)


def _spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """(R,): Spearman's correlation of points that occur ``weights`` (R, n) times; NaN where all are equal."""
    total = weights.sum(axis=1)
    centred = []
    for values in (x, y):
        distinct, place = np.unique(values, return_inverse=True)
        counts = np.zeros((len(weights), distinct.size))
        np.add.at(counts.T, place, weights.T)
        # the mean rank of a tie: all copies below it, and half of its own
        ranks = (np.cumsum(counts, axis=1) - counts / 2)[:, place]
        centred.append(ranks - (np.einsum("rn,rn->r", weights, ranks) / total)[:, None])
    first, second = centred
    norm = np.einsum("rn,rn->r", weights, first**2) * np.einsum("rn,rn->r", weights, second**2)
    return np.asarray(np.einsum("rn,rn->r", weights, first * second) / np.sqrt(np.where(norm > 0, norm, np.nan)))


def _quality(values: Floats, level: float) -> Quality:
    limits = np.nanquantile(values[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)  # (2, 3)
    parts = [Bootstrapped(float(values[0, k]), float(limits[0, k]), float(limits[1, k])) for k in range(3)]
    return Quality(*parts)
