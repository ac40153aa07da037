"""Penalties against autograd on the sum written out, and at extreme strengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from forgetting.fisher import (
    DiagonalFisher,
    DiagonalPenalty,
    KroneckerPenalty,
    diagonal_fisher,
    kfac_fisher,
    raw_strength,
)

Penalty = DiagonalPenalty | KroneckerPenalty
Terms = list[tuple[dict[str, Tensor], dict[str, Tensor]]]
KINDS = ["separate", "online", "kfac"]


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
def test_value_and_gradient_are_those_of_the_sum_written_out(kind: str) -> None:
    penalty, model, terms = _protected(kind)
    expected = _sum(kind, model, terms)
    assert penalty.value(dict(model.named_parameters())) == pytest.approx(float(expected), rel=1e-6)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    penalty.add_gradient(dict(model.named_parameters()), 7.0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + 7 * gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_minimises_distance_and_penalty(kind: str) -> None:
    penalty, model, terms = _protected(kind, tasks=1 if kind == "kfac" else 3)
    start = [p.detach().clone() for p in model.parameters()]
    penalty.step(dict(model.named_parameters()), 0.3)
    distance = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True)) / 2
    stationary = torch.autograd.grad(distance + 0.3 * _sum(kind, model, terms), list(model.parameters()))
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in stationary)


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
    assert other.value(named) == penalty.value(named) and other.stored_floats() == penalty.stored_floats()
    penalty.step(named, 0.1)
    stepped = {name: p.detach().clone() for name, p in named.items()}
    other.step(named, 0.0)
    assert all(torch.equal(p, stepped[name]) for name, p in named.items())


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
    ours = {
        name: mean_token_loss + raw_strength(9.0, name, tokens=tokens, examples=N, fisher_examples=M) / 2 * F * moved**2  # type: ignore[arg-type]
        for name in ("mean", "van_de_ven", "kirkpatrick", "avalanche")
    }
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
