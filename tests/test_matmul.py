"""Products by oneDNN against torch's own: every memory layout, and where they must be torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from forgetting import matmul
from forgetting.fisher import diagonal_fisher
from tests.fisher.families import Family, gpt2, llama


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """A processor with AVX-512, as far as is asked (oneDNN's products run on any); the shapes that oneDNN was given."""
    shapes: list[tuple[int, ...]] = []
    onednn = matmul._onednn

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((*x.shape, len(weight)))
        return onednn(x, weight, bias)

    monkeypatch.setattr(matmul, "_onednn", noted)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    yield shapes


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


LAYOUTS = {
    "rows": (_random(6, 7), _random(7, 5)),
    "transposed": (_random(7, 6).T, _random(5, 7).T),
    "every second": (_random(6, 14)[:, ::2], _random(14, 10)[::2, ::2]),
    "slices": (_random(9, 14)[2:8, 3:10], _random(9, 9)[1:8, 2:7]),
    "broadcast": (_random(1, 7).expand(6, 7), _random(7, 1).expand(7, 5)),
    "three dimensions": (_random(2, 3, 7), _random(7, 5)),
    "batch last": (_random(3, 2, 7).transpose(0, 1), _random(7, 5)),
    "one term": (_random(6, 1), _random(1, 5)),
    "one row, one column": (_random(1, 7), _random(7, 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_product(layout: str, wide: list[tuple[int, ...]]) -> None:
    left, right = LAYOUTS[layout]
    exact = left.double() @ right.double()
    bound = 4 * left.shape[-1] * torch.finfo(torch.float32).eps * (left.double().abs() @ right.double().abs())
    assert ((matmul.multiply(left, right).double() - exact).abs() <= bound).all()
    bias = _random(right.shape[1])
    assert ((matmul.linear(left, right.T, bias).double() - exact - bias.double()).abs() <= bound + 1e-6).all()
    assert len(wide) == 2


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (_random(6, 7).double(), _random(7, 5).double()),
        (_random(6, 7).bfloat16(), _random(7, 5).bfloat16()),
        (_random(0, 7), _random(7, 5)),
        (_random(6, 0), _random(0, 5)),
    ],
    ids=["float64", "bfloat16", "no rows", "no terms"],
)
def test_other_types_and_empty_matrices_are_torchs_own(
    left: Tensor, right: Tensor, wide: list[tuple[int, ...]]
) -> None:
    assert torch.equal(matmul.multiply(left, right), left @ right)
    assert torch.equal(matmul.linear(left, right.T, None), torch.nn.functional.linear(left, right.T))
    assert wide == []


def test_where_onednn_is_off_or_no_wider_products_are_torchs_own(
    wide: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = _random(64, 48), _random(48, 32)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(matmul.multiply(left, right), left @ right)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert torch.equal(matmul.multiply(left, right), left @ right)
    assert wide == []


def test_gradients_are_recorded_by_torchs_own(wide: list[tuple[int, ...]]) -> None:
    left, right = _random(6, 7).requires_grad_(), _random(7, 5)
    (gradient,) = torch.autograd.grad(matmul.multiply(left, right).sum(), left)
    torch.testing.assert_close(gradient, right.sum(1).expand(6, 7))
    assert wide == []
    with torch.no_grad():
        matmul.multiply(left, right)
    assert wide == [(6, 7, 5)]


def test_fast_layers_are_put_back_and_leave_replaced_ones_alone(wide: list[tuple[int, ...]]) -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    model[1].forward = lambda x: x  # type: ignore[method-assign]
    x = _random(6, 7)
    with torch.no_grad(), matmul.fast_layers(model):
        inside = model(x)
    assert wide == [(6, 7, 5)]
    torch.testing.assert_close(inside, model(x))
    assert "forward" not in model[0].__dict__ and "forward" in model[1].__dict__
    with pytest.raises(RuntimeError), matmul.fast_layers(model):
        model(_random(6, 8))
    assert "forward" not in model[0].__dict__


@pytest.mark.parametrize("family", [llama, gpt2])
def test_the_fisher_information_is_the_same_both_ways(family: Family, wide: list[tuple[int, ...]]) -> None:
    model, batch = family()
    model = model.float()
    ours = diagonal_fisher(model, [batch], estimator="empirical", backend="torch").values
    assert wide
    with torch.backends.mkldnn.flags(enabled=False):
        own = diagonal_fisher(model, [batch], estimator="empirical", backend="torch").values
    for name, values in own.items():
        assert (ours[name] - values).abs().max() <= 1e-5 * values.abs().max(), name
