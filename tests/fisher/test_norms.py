"""The written-out RMSNorm: whose it is, and that its gradients are autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from forgetting.fisher import diagonal_fisher, rules
from forgetting.fisher.norms import _RootMeanSquareNorm, is_written_out, scale_norm
from tests.fisher.families import Batch, llama, qwen3


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm, T5LayerNorm])
def test_the_same_instructions_have_the_rule(kind: type[nn.Module]) -> None:
    assert is_written_out(kind(8))


@pytest.mark.parametrize("kind", [GemmaRMSNorm, Olmo2RMSNorm, nn.RMSNorm])
def test_other_arithmetic_has_not(kind: type[nn.Module]) -> None:
    assert not is_written_out(kind(8))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_value_and_gradients_are_autograds(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(16, eps=1e-3).to(dtype)
    norm.weight.data = torch.randn(16, generator=generator).to(dtype)
    x = torch.randn(3, 5, 16, generator=generator).to(dtype).requires_grad_()
    g = torch.randn(3, 5, 16, generator=generator).to(dtype)
    seen: list[Tensor] = []
    value = _RootMeanSquareNorm.apply(x, norm.weight, 1e-3, torch.zeros((), requires_grad=True), seen.append)
    if dtype == torch.float64:  # transformers rounds to float32 here
        expected = norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
    else:
        expected = norm(x)
        assert torch.equal(value, expected)
    (ours,) = torch.autograd.grad(value, x, g)
    theirs, weight = torch.autograd.grad(expected, (x, norm.weight), g)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(seen[0].sum((0, 1)).to(dtype), weight, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("family", [llama, qwen3])
def test_the_fisher_of_a_model_is_that_of_the_general_rule(
    family: Callable[[], tuple[nn.Module, Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = family()
    model = model.float()
    norms = ["*norm*", "*q_proj*", "*embed*"]
    ours = diagonal_fisher(model, [batch], estimator="empirical", parameters=norms, backend="torch").values
    with monkeypatch.context() as patch:
        patch.setattr(rules, "written_out_norm", scale_norm)
        general = diagonal_fisher(model, [batch], estimator="empirical", parameters=norms, backend="torch").values
    for name, values in general.items():
        assert float((ours[name] - values).abs().max()) <= 1e-5 * float(values.abs().max()), name


def test_a_first_norm_whose_input_needs_no_gradient() -> None:
    norm = nn.Sequential(LlamaRMSNorm(4), nn.Linear(4, 3)).eval()
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    ours = diagonal_fisher(norm, [(x, y)], estimator="empirical", backend="torch").values
    oracle = diagonal_fisher(norm, [(x, y)], estimator="empirical", backend="reference").values
    for name, values in oracle.items():
        torch.testing.assert_close(ours[name].double(), values, rtol=1e-4, atol=1e-7)
