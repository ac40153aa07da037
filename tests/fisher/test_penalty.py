"""Penalties against autograd on the sum written out, and at extreme strengths."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from forgetting.fisher import (
    DiagonalFisher,
    DiagonalPenalty,
    KroneckerFisher,
    KroneckerPenalty,
    diagonal_fisher,
    kfac_fisher,
    raw_strength,
)
from forgetting.fisher.kronecker import Factor
from forgetting.fisher.penalty import Convention

Penalty = DiagonalPenalty | KroneckerPenalty
Terms = list[tuple[dict[str, Tensor], dict[str, Tensor]]]
KINDS = ["separate", "online", "kfac"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def _pairs(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0]))]


def _protected(
    kind: str, tasks: int = 3
) -> tuple[Penalty, nn.Module, list[tuple[dict[str, Tensor], dict[str, Tensor]]]]:
    """A penalty after some tasks, the model moved on, and (full Fisher diagonal or dense block, weights) by task."""
    model = _model()
    penalty: Penalty = KroneckerPenalty() if kind == "kfac" else DiagonalPenalty(online=kind == "online", decay=0.5)
    written_out = []
    for task in range(tasks):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        dense: dict[str, Tensor] = {}
        if isinstance(penalty, KroneckerPenalty):
            kronecker = kfac_fisher(model, _pairs(task), estimator="empirical")
            penalty.consolidate(kronecker, weights)
            for name, factor in kronecker.factors.items():
                basis = torch.kron(factor.G_basis, factor.A_basis)
                dense[name] = basis @ torch.diag(factor.eigenvalues.flatten().double()) @ basis.T
            dense |= {name: torch.diag(v.flatten().double()) for name, v in kronecker.diagonal.values.items()}
        else:
            fisher = diagonal_fisher(model, _pairs(task), estimator="empirical", accumulate_dtype=torch.float64)
            penalty.consolidate(fisher, weights)
            dense = {name: torch.diag(value.flatten()) for name, value in fisher.values.items()}
        written_out.append((dense, weights))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return penalty, model, written_out


def _sum(kind: str, model: nn.Module, terms: Terms) -> Tensor:
    """½ Σ_i (θ−θ_i)ᵀ F_i (θ−θ_i), or the online form of it."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (dense, weights) in enumerate(terms):
        scale, anchor = (0.5 ** (len(terms) - 1 - i), terms[-1][1]) if kind == "online" else (1.0, weights)
        for name, parameter in model.named_parameters():
            moved = (parameter - anchor[name]).flatten()
            total = total + scale * moved @ dense[name] @ moved / 2
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_sum_written_out(kind: str) -> None:
    penalty, model, terms = _protected(kind)
    expected = _sum(kind, model, terms)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    penalty.add_gradient(dict(model.named_parameters()), 7.0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + 7 * gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strength", [0.3, 300.0])
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_minimises_distance_and_penalty(kind: str, tasks: int, strength: float) -> None:
    penalty, model, terms = _protected(kind, tasks)
    start = [p.detach().clone() for p in model.parameters()]
    penalty.step(dict(model.named_parameters()), strength)
    distance = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True)) / 2
    stationary = torch.autograd.grad(distance + strength * _sum(kind, model, terms), list(model.parameters()))
    assert all(float(gradient.abs().max()) < 1e-4 for gradient in stationary)


def test_two_equal_terms_meet_in_the_middle_however_strong() -> None:
    parameter = nn.Parameter(torch.tensor([[7.0]]))
    one = torch.ones(1, 1)
    penalty = KroneckerPenalty()
    for anchor in (0.0, 1.0):
        fisher = KroneckerFisher({"w": Factor(one, one, one)}, DiagonalFisher({}, "empirical", 1, 1), True)
        penalty.consolidate(fisher, {"w": torch.tensor([[anchor]])})
    penalty.step({"w": parameter}, 1e6)
    assert float(parameter) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_step_is_stable_at_any_strength_and_precision(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.linspace(-2, 2, 9, dtype=dtype))
    penalty = DiagonalPenalty()
    fisher = DiagonalFisher({"w": torch.logspace(-8, 8, 9)}, "empirical", 1, 1)
    penalty.consolidate(fisher, {"w": torch.ones(9)})
    for strength in (1e-30, 1e6, 1e30):
        penalty.step({"w": parameter}, strength)
        assert bool(torch.isfinite(parameter).all())
    torch.testing.assert_close(parameter.detach().float(), torch.ones(9), rtol=0.02, atol=0.02)


def test_half_precision_models_are_protected_by_kronecker_factors() -> None:
    penalty, model, _ = _protected("kfac", 2)
    model.bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    penalty.step(dict(model.named_parameters()), 10.0)
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_what_a_parameter_grew_by_is_not_protected() -> None:
    penalty = DiagonalPenalty()
    penalty.consolidate(DiagonalFisher({"w": torch.ones(2, 3)}, "empirical", 1, 1), {"w": torch.zeros(2, 3)})
    longer = nn.Parameter(torch.ones(4, 3))
    penalty.grow({"w": longer})
    penalty.step({"w": longer}, 1e9)
    assert float(longer[:2].abs().max()) < 1e-6 and bool((longer[2:] == 1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_changes_nothing_and_infinite_strength_does_not_move(kind: str) -> None:
    penalty, model, terms = _protected(kind, tasks=1)
    named = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    penalty.step(named, 0.0)
    penalty.add_gradient(named, 0.0)
    assert all(torch.equal(p, before[name]) and bool((p.grad == 1).all()) for name, p in named.items())
    for _ in range(3):
        penalty.step(named, 1e12)
    (dense, weights), bound = terms[0], 1e-6
    for name, parameter in named.items():
        moved = (parameter - weights[name]).detach().flatten()
        assert float(moved @ dense[name] @ moved) < bound  # nothing is left where the Fisher information is not zero
        assert bool(torch.isfinite(parameter).all())


@pytest.mark.parametrize("kind", KINDS)
def test_state_survives(kind: str) -> None:
    penalty, model, _ = _protected(kind)
    other: Penalty = KroneckerPenalty() if kind == "kfac" else DiagonalPenalty(online=kind == "online", decay=0.5)
    other.load_state_dict({key: value.clone() for key, value in penalty.state_dict().items()})
    named = dict(model.named_parameters())
    assert other.stored_floats() == penalty.stored_floats() > 0
    twin = {name: nn.Parameter(p.detach().clone()) for name, p in named.items()}
    penalty.step(named, 0.1)
    other.step(twin, 0.1)
    assert all(torch.equal(p, twin[name]) for name, p in named.items())


def test_diagonal_memory_does_not_grow_with_tasks() -> None:
    assert _protected("separate", 1)[0].stored_floats() == _protected("separate", 9)[0].stored_floats()
    assert _protected("kfac", 1)[0].stored_floats() < _protected("kfac", 3)[0].stored_floats()


def test_strength_means_the_same_at_any_number_of_examples() -> None:
    model, pairs = _model(), _pairs(0)
    once = diagonal_fisher(model, pairs, estimator="empirical").values
    thrice = diagonal_fisher(model, pairs * 3, estimator="empirical").values
    for name, value in once.items():
        torch.testing.assert_close(value, thrice[name])


def test_other_conventions_give_the_same_penalty() -> None:
    """Each convention's total objective, divided by what its loss is a multiple of, is ours at the converted λ."""
    F, moved, mean_token_loss, tokens, N, M = 0.7, 1.3, 2.0, 5.0, 40, 60
    strengths = {name: raw_strength(9.0, name, tokens=tokens, examples=N) for name in CONVENTIONS}
    strengths["kirkpatrick"] *= M  # consolidated with this weight
    ours = {name: mean_token_loss + strength / 2 * F * moved**2 for name, strength in strengths.items()}
    assert ours["mean"] == pytest.approx(mean_token_loss + 9 / 2 * F * moved**2)
    assert ours["van_de_ven"] == pytest.approx((tokens * mean_token_loss + 9 / 2 * F * moved**2) / tokens)
    assert ours["avalanche"] == pytest.approx((tokens * mean_token_loss + 9 * F * moved**2) / tokens)
    summed = N * tokens * mean_token_loss + 9 / 2 * (M * F) * moved**2
    assert ours["kirkpatrick"] == pytest.approx(summed / (N * tokens))


def test_a_fisher_of_some_parameters_protects_those() -> None:
    model = _model()
    named = dict(model.named_parameters())
    penalty = DiagonalPenalty()
    penalty.consolidate(DiagonalFisher({"0.bias": torch.ones(4)}, "empirical", 1, 1), named)
    with torch.no_grad():
        for parameter in named.values():
            parameter.add_(1.0)
    before = {name: p.detach().clone() for name, p in named.items()}
    penalty.step(named, 1.0)
    assert [name for name, p in named.items() if not torch.equal(p, before[name])] == ["0.bias"]
