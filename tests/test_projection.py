"""Projections, against independent solvers and brute force, in float64 where it can be."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from forgetting.projection import (
    copy_flat,
    extended_basis,
    flattened,
    gradient_on,
    grown_basis,
    inner_products,
    project_onto_cone,
    project_onto_halfspace,
    with_gradients,
    without_inputs,
    without_span,
)
from tests.models_for_tests import tiny_gpt2

SHAPES = [(3, 2), (4,), (1, 2)]


def random_vector(generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def nearest_by_slsqp(g: np.ndarray, G: np.ndarray) -> np.ndarray:
    """The primal problem, in which no dual and no non-negative least squares occur."""
    result = minimize(
        lambda u: 0.5 * ((u - g) ** 2).sum(),
        np.zeros_like(g),
        jac=lambda u: u - g,
        constraints={"type": "ineq", "fun": lambda u: G @ u, "jac": lambda u: G},
        method="SLSQP",
        options={"ftol": 1e-18, "maxiter": 500},
    )
    return np.asarray(result.x)


@pytest.mark.parametrize("seed", range(12))
def test_the_cone_projection_is_the_quadratic_programs_solution(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    references = [random_vector(generator) for _ in range(1 + seed % 5)]
    if seed % 3 == 0:  # a constraint that occurs twice: the dual's matrix is singular
        references.append([2 * piece for piece in references[0]])
    # Against all of them, so that several constraints bind.
    gradient = [sum(pieces) * -0.5 + noise for *pieces, noise in zip(*references, random_vector(generator))]  # noqa: B905
    g, G = flattened(gradient).numpy(), torch.stack([flattened(r) for r in references]).numpy()
    assert (G @ g < 0).any()
    project_onto_cone(gradient, references)
    np.testing.assert_allclose(flattened(gradient).numpy(), nearest_by_slsqp(g, G), atol=1e-8)
    assert (G @ flattened(gradient).numpy() > -1e-12).all()


def test_the_margin_bounds_the_dual_from_below() -> None:
    generator = torch.Generator().manual_seed(0)
    references = [random_vector(generator) for _ in range(3)]
    gradient = [-0.1 * piece for piece in references[0]]
    g, G = flattened(gradient).numpy(), torch.stack([flattened(r) for r in references]).numpy()
    project_onto_cone(gradient, references, margin=0.5)
    dual = minimize(
        lambda v: 0.5 * ((g + G.T @ v) ** 2).sum(),
        np.full(3, 0.5),
        jac=lambda v: G @ (g + G.T @ v),
        bounds=[(0.5, None)] * 3,
        method="SLSQP",
        options={"ftol": 1e-18, "maxiter": 500},
    )
    np.testing.assert_allclose(flattened(gradient).numpy(), g + G.T @ dual.x, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_halfspace_projection_is_the_quadratic_programs_solution(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient, reference = random_vector(generator), random_vector(generator)
    if torch.dot(flattened(gradient), flattened(reference)) > 0:
        gradient = [-piece for piece in gradient]
    g, r = flattened(gradient).numpy(), flattened(reference).numpy()
    project_onto_halfspace(gradient, reference)
    np.testing.assert_allclose(flattened(gradient).numpy(), nearest_by_slsqp(g, r[None]), atol=1e-8)


def test_a_gradient_that_agrees_is_not_touched() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = random_vector(generator)
    for gradient in (copy.deepcopy(reference), [torch.zeros_like(piece) for piece in reference]):
        before = flattened(gradient)
        project_onto_cone(gradient, [reference], margin=1.0)
        project_onto_halfspace(gradient, reference)
        assert torch.equal(flattened(gradient), before)
    project_onto_cone(gradient, [[torch.zeros_like(piece) for piece in reference]])  # a state without any gradient


def test_inner_products_over_chunks_are_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetting.projection.CHUNK", 4)
    generator = torch.Generator().manual_seed(0)
    vectors = [random_vector(generator) for _ in range(3)]
    matrix = torch.stack([flattened(vector) for vector in vectors])
    torch.testing.assert_close(inner_products(vectors), matrix @ matrix.T, rtol=1e-14, atol=1e-14)


def test_a_gradient_elsewhere_leaves_the_parameters_gradients_alone() -> None:
    model = tiny_gpt2().double().train()  # its head is tied, its parameters are counted once
    model.transformer.h[0].requires_grad_(False)
    batch, other = ({"input_ids": ids, "labels": ids} for ids in (torch.arange(2, 8)[None], torch.arange(9, 15)[None]))
    model(**batch).loss.backward()
    parameters, gradient = with_gradients(model)
    assert len(parameters) == len({id(p) for p in parameters}) == sum(p.requires_grad for p in model.parameters())
    before = flattened(gradient)
    found = gradient_on(model, other, parameters)
    assert torch.equal(flattened(gradient), before) and model.training
    model.zero_grad()
    model(**other).loss.backward()
    torch.testing.assert_close(flattened(found), flattened(with_gradients(model)[1]), rtol=1e-12, atol=1e-14)


def test_a_basis_of_nearly_dependent_vectors_is_orthonormal_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(400, generator=generator)
    vectors = [common + 1e-3 * torch.randn(400, generator=generator) for _ in range(20)]
    repeated = [*vectors, 3 * vectors[4], torch.zeros(400)]
    first = extended_basis(torch.zeros(0, 400), vectors[:5], 5)
    basis = extended_basis(first, repeated[5:], len(repeated))
    assert basis.shape == (20, 400) and torch.equal(basis[:5], first)
    assert (basis @ basis.T - torch.eye(20)).abs().max() < 2e-6
    for vector in vectors:
        assert without_span(vector, basis).norm() < 1e-5 * vector.norm()


def test_a_step_of_some_numbers_alone_is_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 4, generator=generator, dtype=torch.float64))[0].T
    moves = torch.arange(12) % 3 > 0
    vector = torch.randn(12, generator=generator, dtype=torch.float64) * moves
    found = without_span(vector, basis, moves)
    B, v = basis[:, moves].numpy(), vector[moves].numpy()
    expected = v - B.T @ np.linalg.lstsq(B.T, v, rcond=None)[0]
    np.testing.assert_allclose(found[moves].numpy(), expected, atol=1e-12)
    assert not found[~moves].any() and (basis @ found).abs().max() < 1e-12
    everything = torch.ones(12, dtype=torch.bool)
    torch.testing.assert_close(without_span(vector, basis, everything), without_span(vector, basis))


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.99, 1.0])
def test_a_layers_basis_is_the_singular_value_decompositions(threshold: float) -> None:
    """The criterion as the paper has it, on the inputs themselves."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 8, dtype=torch.float64)[:, None]
    first, second = (scale * torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    basis = torch.zeros(8, 0, dtype=torch.float64)
    for R in (first, second):
        rest = R - basis @ basis.T @ R
        U, S, _ = torch.linalg.svd(rest, full_matrices=False)
        held = ((basis.T @ R) ** 2).sum()
        enough = [k for k in range(6) if held + (S[:k] ** 2).sum() >= (threshold - 1e-12) * (R**2).sum()]
        expected = torch.cat([basis, U[:, : min(enough)]], dim=1)
        grown = grown_basis(basis, R @ R.T, threshold)
        assert grown.shape == expected.shape and torch.equal(grown[:, : basis.shape[1]], basis)
        torch.testing.assert_close(grown @ grown.T, expected @ expected.T, rtol=1e-9, atol=1e-9)
        basis = grown
        assert grown_basis(basis, R @ R.T, threshold).shape == basis.shape  # met again, it adds nothing


def test_a_basis_in_fp32_takes_no_rounding_for_a_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    R = torch.randn(8, 3, generator=generator)
    moment = R.double() @ R.double().T
    basis = grown_basis(torch.zeros(8, 0), moment, 1.0)
    assert basis.shape == (8, 3) and basis.dtype == torch.float32
    again = R + 1e-7 * torch.randn(8, 3, generator=generator)
    assert grown_basis(basis, again.double() @ again.double().T, 1.0).shape == (8, 3)


def test_a_projected_step_does_not_act_on_the_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    R = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    basis = grown_basis(torch.zeros(8, 0, dtype=torch.float64), R @ R.T, 1.0)
    step = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    projected = without_inputs(step, basis, transposed=False)
    assert (projected @ R).abs().max() < 1e-14 < projected.abs().max()
    torch.testing.assert_close(without_inputs(step.T, basis, transposed=True), projected.T, rtol=0, atol=1e-14)
    whole = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    assert not without_inputs(step, whole, transposed=False).any()


def test_flat_and_back() -> None:
    tensors = random_vector(torch.Generator().manual_seed(0))
    copies = [torch.zeros_like(tensor) for tensor in tensors]
    copy_flat(flattened(tensors), copies)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
