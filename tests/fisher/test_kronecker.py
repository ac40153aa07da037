"""Kronecker factors against formulas written out, and the full Fisher information of a small layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetting.fisher import diagonal_fisher, kfac_fisher
from tests.fisher.families import FAMILIES


def _layer() -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 0, 1, 0])
    return model, [(x[:3], y[:3]), (x[3:], y[3:])]


def _gradients(model: nn.Module, pairs: list[Any]) -> Tensor:
    """Of the first weight, by example: (N, O, I)."""
    weight = model.get_parameter("0.weight")
    rows = [(x[i : i + 1], y[i : i + 1]) for x, y in pairs for i in range(len(x))]
    return torch.stack([torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weight)[0] for x, y in rows])


def test_factors_are_the_moments_of_inputs_and_output_gradients() -> None:
    model, pairs = _layer()
    fisher = kfac_fisher(model, pairs, estimator="empirical", corrected=False)
    factor = fisher.factors["0.weight"]
    x = torch.cat([x for x, _ in pairs])
    torch.testing.assert_close(
        factor.A_basis @ torch.diag(factor.eigenvalues[-1] / factor.eigenvalues[-1].sum()) @ factor.A_basis.T,
        (x.T @ x) / (x.T @ x).trace(),
    )
    per_example = _gradients(model, pairs)
    # One token: the gradient is g aᵀ, so that G is Σ g gᵀ = Σ_e grad_e grad_eᵀ / |a_e|².
    G = torch.einsum("noi,npi,n->op", per_example, per_example, 1 / x.square().sum(1)) / len(x)
    expected = torch.kron(G, x.T @ x / len(x))
    basis = torch.kron(factor.G_basis, factor.A_basis)
    torch.testing.assert_close(basis @ torch.diag(factor.eigenvalues.flatten()) @ basis.T, expected)


def test_corrected_eigenvalues_are_second_moments_in_the_basis_and_fit_better() -> None:
    model, pairs = _layer()
    plain = kfac_fisher(model, pairs, estimator="empirical", corrected=False).factors["0.weight"]
    corrected = kfac_fisher(model, pairs, estimator="empirical").factors["0.weight"]
    per_example = _gradients(model, pairs)
    rotated = corrected.G_basis.T @ per_example @ corrected.A_basis
    torch.testing.assert_close(corrected.eigenvalues, rotated.square().mean(0), rtol=1e-6, atol=1e-12)
    full = torch.einsum("na,nb->ab", per_example.flatten(1), per_example.flatten(1)) / len(per_example)

    def distance(factor: Any) -> float:
        basis = torch.kron(factor.G_basis, factor.A_basis)
        return float((basis @ torch.diag(factor.eigenvalues.flatten()) @ basis.T - full).norm())

    assert distance(corrected) < distance(plain) < float(full.norm())


@pytest.mark.parametrize("family", ["llama-tied", "gpt2-untied", "albert", "t5-untied"])
def test_models_have_factors_for_their_linear_weights_and_a_diagonal_for_the_rest(family: str) -> None:
    model, batch = FAMILIES[family]()
    split = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]
    kronecker = kfac_fisher(model, [batch], estimator="empirical")
    by_rows = kfac_fisher(model, split, estimator="empirical")
    diagonal = diagonal_fisher(model, [batch], estimator="empirical", accumulate_dtype=torch.float64)
    tied = {name for name in diagonal.values if "embed_tokens" in name or "shared" in name or "wte" in name}
    assert set(kronecker.factors) | set(kronecker.diagonal.values) == set(diagonal.values)
    assert not set(kronecker.factors) & (set(kronecker.diagonal.values) | tied)
    assert len(kronecker.factors) >= 4
    for name, value in kronecker.diagonal.values.items():
        torch.testing.assert_close(value.double(), diagonal.values[name], rtol=1e-5, atol=1e-9)
    for name, factor in kronecker.factors.items():
        parameter = model.get_parameter(name)
        assert factor.eigenvalues.shape == parameter.shape
        # The trace of a block does not depend on the basis: it is the diagonal's sum.
        torch.testing.assert_close(factor.eigenvalues.sum(), diagonal.values[name].sum(), rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(by_rows.factors[name].eigenvalues.sum(), factor.eigenvalues.sum())


def test_sampled_labels_are_the_same_in_both_passes_and_seeded() -> None:
    model, batch = FAMILIES["llama-untied"]()
    fishers = [kfac_fisher(model, iter([batch]), generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    diagonal = diagonal_fisher(model, [batch], generator=torch.Generator().manual_seed(4))
    for name, factor in fishers[0].factors.items():
        assert torch.equal(factor.eigenvalues, fishers[1].factors[name].eigenvalues)
        torch.testing.assert_close(factor.eigenvalues.sum().float(), diagonal.values[name].sum(), rtol=1e-4, atol=1e-9)


def test_long_weights_stay_diagonal_and_other_estimators_are_refused() -> None:
    model, batch = FAMILIES["llama-untied"]()
    fisher = kfac_fisher(model, [batch], max_size=12)
    assert "lm_head.weight" in fisher.diagonal.values and "model.layers.0.mlp.up_proj.weight" in fisher.factors
    with pytest.raises(ValueError, match="estimator 'exact'"):
        kfac_fisher(model, [batch], estimator="exact")
