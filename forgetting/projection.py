"""Gradients and steps, projected so that they do not hurt what came before (GEM, A-GEM, OGD, GPM)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forgetting.weights import statistics_kept

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

CHUNK = 1 << 20
"""Numbers per gradient that are in fp64 at a time while inner products are taken."""


def with_gradients(model: nn.Module) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Return the parameters that have a gradient, a tied one once, and these gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    return parameters, [p.grad for p in parameters if p.grad is not None]


def gradient_on(
    model: PreTrainedModel, batch: dict[str, Tensor], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, ...]:
    """Return the gradient of the model's own loss on a batch, 0 where a parameter has no part in it.

    No ``.grad`` is touched, and the model's mode and running statistics are left as they are.
    """
    with statistics_kept(model):
        loss = model(**batch).loss
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def inner_products(vectors: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return all inner products of n vectors in fp64, (n, n); a vector is a list of tensors of any shape."""
    total = vectors[0][0].new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for pieces in zip(*vectors, strict=True):
        for chunk in zip(*(piece.detach().reshape(-1).split(CHUNK) for piece in pieces), strict=True):
            rows = torch.stack(chunk).double()
            total += rows @ rows.T
    return total


def cone_weights(
    products: np.ndarray[Any, Any], onto: np.ndarray[Any, Any], margin: float = 0.0
) -> np.ndarray[Any, Any]:
    """Solve GEM's dual problem exactly: argmin ½ vᵀ K v + qᵀ v over v ≥ margin.

    With K = GGᵀ and q = Gg it is ½‖g + Gᵀv‖² up to a constant: non-negative least squares in the references' span.

    Args:
        products: K, (k, k), fp64; it may be singular.
        onto: q, (k,).
        margin: γ, added to every constraint of the dual.

    Returns:
        v, (k,). Where K is singular v is not unique, but Gᵀv is.
    """
    import numpy as np
    from scipy.optimize import nnls

    eigenvalues, vectors = np.linalg.eigh(products)
    kept = eigenvalues > len(products) * np.finfo(np.float64).eps * eigenvalues[-1]
    if not kept.any():
        return np.full(len(products), margin)
    roots = np.sqrt(eigenvalues[kept])
    shifted = onto + margin * products.sum(axis=1)
    # K = AᵀA and q = −Aᵀb, so that the objective is ½‖Av − b‖².
    A, b = roots[:, None] * vectors[:, kept].T, -(vectors[:, kept].T @ shifted) / roots
    solution: np.ndarray[Any, Any] = nnls(A, b)[0] + margin
    return solution


def project_onto_cone(gradient: list[Tensor], references: Sequence[Sequence[Tensor]], margin: float = 0.0) -> None:
    """Replace g by the nearest g' with ⟨g', g_k⟩ ≥ 0 for every reference g_k; in place.

    g' = g + Gᵀv, with v of :func:`cone_weights`. A gradient that agrees with every reference is not touched, whatever
    the margin (Lopez-Paz & Ranzato 2017, arXiv 1706.08840).
    """
    products = inner_products([gradient, *references]).cpu().numpy()
    onto = products[0, 1:]
    if (onto >= 0).all():
        return
    for weight, reference in zip(cone_weights(products[1:, 1:], onto, margin), references, strict=True):
        torch._foreach_add_(gradient, list(reference), alpha=float(weight))


def project_onto_halfspace(gradient: list[Tensor], reference: Sequence[Tensor]) -> None:
    """Replace g by the nearest g' with ⟨g', r⟩ ≥ 0: g' = g − min(0, ⟨g, r⟩) r / ‖r‖²; in place.

    The closed form of A-GEM (Chaudhry et al. 2019, arXiv 1812.00420).
    """
    products = inner_products([gradient, reference]).tolist()
    if products[0][1] < 0:
        torch._foreach_add_(gradient, list(reference), alpha=-products[0][1] / products[1][1])


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors' numbers as one vector, (P,)."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def copy_flat(vector: Tensor, into: Sequence[Tensor]) -> None:
    """Write a vector that :func:`flattened` gave back into tensors."""
    pieces = vector.split([tensor.numel() for tensor in into])
    with torch.no_grad():
        torch._foreach_copy_(list(into), [p.view_as(t) for p, t in zip(pieces, into, strict=True)])


def without_span(vector: Tensor, basis: Tensor, moves: Tensor | None = None) -> Tensor:
    """Return v − Bᵀ B v: a vector (P,) without its part in the span of orthonormal rows (n, P).

    Args:
        vector: v.
        basis: B.
        moves: Where given, (P,) of bool: the result is 0 elsewhere, as v must be, and the nearest to v of all such
            vectors that are orthogonal to B's rows. These rows are not orthonormal where they are cut.
    """
    if moves is None:
        return torch.addmv(vector, basis.T, basis @ vector, alpha=-1)
    cut = basis * moves
    inverse = torch.linalg.pinv((cut @ cut.T).double(), rtol=1e-6, hermitian=True).to(vector.dtype)
    for _ in range(2):  # the inverse of a badly conditioned product is rough
        vector = torch.addmv(vector, cut.T, inverse @ (cut @ vector), alpha=-1)
    return vector


def extended_basis(basis: Tensor, vectors: Iterable[Tensor], count: int, tolerance: float = 1e-4) -> Tensor:
    """Return an orthonormal basis with what is new of further vectors, by Gram-Schmidt with re-orthogonalisation.

    Once is not enough in fp32: where little of a vector is new, what rounding leaves of the old is as large.

    Args:
        basis: Orthonormal rows, (n, P); n may be 0.
        vectors: At most ``count``, (P,) each; they may be made one by one.
        count: Rows to make room for.
        tolerance: A vector of which less than this share is new, by norm, adds nothing.

    Returns:
        (n', P) with n ≤ n' ≤ n + count; the first n rows are the basis's own.
    """
    grown = torch.cat([basis, basis.new_zeros(count, basis.shape[1])])
    n = len(basis)
    for vector in vectors:
        rest = without_span(without_span(vector, grown[:n]), grown[:n])
        size = rest.norm()
        if size > tolerance * vector.norm():
            grown[n] = rest / size
            n += 1
    return grown[:n].clone()


def grown_basis(basis: Tensor, second_moment: Tensor, threshold: float) -> Tensor:
    """Return a layer's basis with the leading directions of further inputs.

    The left singular vectors of a matrix R of inputs are the eigenvectors of RRᵀ. As few directions are added as it
    takes for the basis to hold ``threshold`` of ‖R‖² (Saha et al. 2021, arXiv 2103.09762, equations 8 and 9); 1 adds
    every direction that occurs, up to rounding.

    Args:
        basis: M with orthonormal columns, (I, k); k may be 0. Its precision is the model's.
        second_moment: RRᵀ, (I, I), in fp64: the sum of x xᵀ over inputs x.
        threshold: ε, in (0, 1].

    Returns:
        (I, k') with k ≤ k' ≤ I; the first k columns are the basis's own.
    """
    size, k = basis.shape
    energy = second_moment.trace()
    known = basis.double()
    beyond = torch.eye(size, dtype=torch.float64, device=basis.device) - known @ known.T
    eigenvalues, vectors = torch.linalg.eigh(beyond @ second_moment @ beyond)  # ascending
    # The model's rounding, squared, or that of the decomposition, whichever is coarser.
    rounding = max(torch.finfo(basis.dtype).eps ** 2, torch.finfo(torch.float64).eps)
    eigenvalues = torch.where(eigenvalues > size * rounding * energy, eigenvalues, 0)
    left_out = int((eigenvalues.cumsum(0) <= (1 - threshold) * energy).sum())
    added = vectors[:, max(left_out, k) :]
    # They are orthogonal to the basis up to its precision; QR makes them so up to fp64's.
    together, _ = torch.linalg.qr(torch.cat([known, added], dim=1))
    return torch.cat([basis, together[:, k:].to(basis.dtype)], dim=1)


def without_inputs(weight: Tensor, basis: Tensor, *, transposed: bool) -> Tensor:
    """Return W − W M Mᵀ: a linear layer's gradient or step, without what acts on inputs in the basis's span.

    Args:
        weight: (O, I), or (I, O) where transposed (GPT-2's Conv1D).
        basis: M, orthonormal columns, (I, k); of a whole basis nothing is left, exactly.
        transposed: Which of the two.
    """
    if basis.shape[0] == basis.shape[1]:
        return torch.zeros_like(weight)
    return weight - basis @ (basis.T @ weight) if transposed else weight - (weight @ basis) @ basis.T
